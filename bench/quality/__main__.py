"""Run the quality benchmark: `python -m bench.quality`.

What is done is kept in the work folder, picture by picture, and is never done again; a run may be stopped at any time, continued,
or extended by more pictures. Several processes may share the folder, each with groups or scales of its own; `--only-summary`
then writes one summary of everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from apt_ext.demo.model import WEIGHTS
from apt_ext.demo.pictures import write_whole
from bench.quality.bars import check_bars
from bench.quality.page import write
from bench.quality.pictures import open_model
from bench.quality.runner import make_tasks, run_tasks
from bench.quality.settings import all_settings, groups
from bench.quality.summary import summarise
from bench.quality.tasks import Task

__all__ = ["main"]


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
    write_whole(args.out, (json.dumps(summary, indent=1) + "\n").encode())
    write(args.out)
    print(f"{args.out}: {len(summary['rows'])} rows; {len(summary['missing'])} missing or with fewer than {args.count} pictures")
    for bar in summary["bars"]:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['found']}")
    return 0 if all(bar["met"] for bar in summary["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
