"""Run the quality benchmark: `python -m bench.quality`.

What is done is kept in the work folder, picture by picture, and is never done again; a run may be stopped at any time, continued,
or extended by more pictures. Several processes may share the folder, each with groups or scales of its own; `--only-summary`
then writes one summary of everything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from apt_ext.demo.model import WEIGHTS
from bench.bars import check_bars
from bench.pictures import BenchModel, open_model
from bench.settings import TRUTH, Setting, all_settings, groups
from bench.summary import summarise
from bench.tasks import Task, evaluations, load_results, most_pictures, run_chunk, store_results

__all__ = ["main", "make_tasks", "run_tasks"]

FIRST = {("presets", 4): 1, ("presets", 2): 2, ("methods", 2): 3}  # what is most worth knowing; the rest follows, group by group


def make_tasks(settings: Sequence[Setting], benches: Sequence[BenchModel], scales: Sequence[int], bases: Sequence[str], seeds: Sequence[int]) -> list[Task]:
    """Every run that the settings ask for, the most useful first; one content may stand there under several names."""
    tasks = [
        Task(setting, scale, base, bench, seed)
        for seed in seeds
        for bench in benches
        for setting in settings
        for scale in setting.scales
        if scale in scales
        for base in bases
        if not (base == "generated" and setting.how in ("truth", "render"))  # the model's own pictures have no truth
    ]
    references = [Task(TRUTH, scale, "reference", bench, seeds[0]) for bench in benches for scale in scales]

    def order(task: Task) -> tuple[int, int, int]:
        group = task.setting.group
        rank = 0 if group == "baselines" else FIRST.get((group, task.scale), len(FIRST) + 1)
        return rank, seeds.index(task.seed), bases.index(task.base)

    return references + sorted(tasks, key=order)


def _done(task: Task, work: Path) -> int:
    results = load_results(task, work)
    return len(results["agreement"]) if results else 0


def run_tasks(tasks: Sequence[Task], count: int, batch: int, work: Path, minutes: float = float("inf"), quiet: bool = False) -> int:
    """Do what is missing of the tasks' first `count` pictures, within a budget of time.

    Returns:
        The number of pictures made.
    """
    unique = list({task.key: task for task in reversed(tasks)}.values())[::-1]
    until, made = time.monotonic() + 60 * minutes, 0
    passes = {task.key: 1 if task.setting.guidance == 1 else 2 for task in unique}
    total = sum(evaluations(task) * passes[task.key] * max(0, count - _done(task, work)) for task in unique)
    with tqdm(total=total, unit="window", unit_scale=True, disable=quiet, mininterval=1, smoothing=0.02) as bar:
        for task in unique:
            bar.set_description(f"{task.setting.group}: {task.setting.name}, {task.scale}x, {task.base}", refresh=False)
            while (done := _done(task, work)) < count:
                if time.monotonic() > until:
                    return made
                numbers = range(done, min(count, done + min(batch, most_pictures(task))))
                new, old = run_chunk(task, numbers, work, bar.update), load_results(task, work)
                # Another process may have come first; numbers are joined only where they follow on each other.
                if old is None or len(old["agreement"]) == done:
                    store_results(task, {name: np.concatenate([old[name], new[name]]) if old else new[name] for name in new}, work)
                made += len(numbers)
    return made


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="The quality benchmark; see docs/bench.")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for what is made, which a later run continues")
    parser.add_argument("--out", type=Path, default=Path("docs/bench/quality.json"), help="the summary")
    parser.add_argument("--count", type=int, default=64, help="pictures per setting, spread evenly over the styles")
    parser.add_argument("--batch", type=int, default=8, help="pictures that are made at once")
    parser.add_argument("--scales", type=_numbers, default=[2, 3, 4], help="linear factors, such as 2,4")
    parser.add_argument("--groups", default="", help=f"some of: {','.join(groups())}; all when left out. The summary is always of all")
    parser.add_argument("--bases", default="encoded,generated", help="encoded scenes, whose truth is known, and pictures that the model generated")
    parser.add_argument("--seeds", type=_numbers, default=[1], help="seeds of the noise, such as 1,2,3")
    parser.add_argument("--weights", type=Path, action="append", help="a model's weights; may be given several times")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop cleanly after this time")
    parser.add_argument("--only-summary", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    if args.count < 4 or args.count % 4:
        parser.error(f"--count {args.count} does not spread evenly over the 4 styles; use a multiple of 4")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 where a stated bar is missed."""
    args = _arguments(argv)
    benches = [open_model(path) for path in args.weights or [WEIGHTS]]

    def tasks(names: str) -> list[Task]:
        return make_tasks(all_settings(tuple(filter(None, names.split(",")))), benches, args.scales, args.bases.split(","), args.seeds)

    if not args.only_summary:
        run_tasks(tasks(args.groups), args.count, args.batch, args.work, args.minutes)
    summary = summarise(tasks(""), args.count, args.work)
    summary["bars"] = check_bars(summary)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=1) + "\n")
    part.replace(args.out)
    print(f"{args.out}: {len(summary['rows'])} rows; {len(summary['missing'])} missing or with fewer than {args.count} pictures")
    for bar in summary["bars"]:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['found']}")
    return 0 if all(bar["met"] for bar in summary["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
