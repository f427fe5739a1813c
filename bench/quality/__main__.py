"""Run the quality benchmark: `python -m bench.quality`.

What is done is kept in the work folder, picture by picture, and is never done again; a run may be stopped at any time, continued,
or extended by more pictures. Several processes may share the folder, each with groups or scales of its own; `--only-summary`
then writes one summary of everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from apt_ext.demo.model import WEIGHTS
from bench.quality.bars import check_bars
from bench.quality.page import write_page
from bench.quality.pictures import PHOTOGRAPHS, SETS, open_model
from bench.quality.results import collect, write
from bench.quality.runner import make_tasks, run_tasks
from bench.quality.settings import all_settings, groups
from bench.quality.tasks import Task

__all__ = ["main"]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="The quality benchmark; see docs/bench.")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for what is made, which a later run continues")
    parser.add_argument("--out", type=Path, default=Path("docs/bench/quality.json"), help="the results; page and plots are written beside it")
    parser.add_argument("--few", type=int, default=8, help="scenes and photographs for settings that explore")
    parser.add_argument("--full", type=int, default=16, help="scenes and photographs for presets and baselines")
    parser.add_argument("--scales", type=_numbers, default=[4, 2], help="linear factors, such as 2,4")
    parser.add_argument("--sets", default=",".join(SETS), help=f"some of: {','.join(SETS)}")
    parser.add_argument("--groups", default="", help=f"some of: {','.join(groups())}; all when left out. The results are always of all")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--weights", type=Path, action="append", help="a model's weights; of further ones, presets and baselines")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop cleanly after this time")
    parser.add_argument("--only-summary", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    most = len(PHOTOGRAPHS)
    for name in ("few", "full"):
        if not 2 <= getattr(args, name) <= most or getattr(args, name) % 4:
            parser.error(f"--{name} {getattr(args, name)} is no multiple of 4 up to {most}, which the styles and the photographs allow; use {most}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 where a stated bar is missed."""
    args = _arguments(argv)
    benches = [open_model(path) for path in args.weights or [WEIGHTS]]

    def tasks(names: str) -> list[Task]:
        settings = all_settings(tuple(filter(None, names.split(","))))
        return make_tasks(settings, benches, args.scales, args.sets.split(","), args.few, args.full, args.seed)

    if not args.only_summary:
        run_tasks(tasks(args.groups), args.work, minutes=args.minutes)
    results = collect(tasks(""), args.work)
    write(results, args.out)
    write_page(args.out)
    print(f"{args.out}: {len(results['rows'])} rows; {len(results['missing'])} missing or with fewer pictures than planned")
    checks = check_bars(results)
    for check in checks:
        print(f"{'met   ' if check.met else 'MISSED'} {check.bar}: {check.found}")
    return 0 if all(check.met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
