"""The bars that the presets have to clear, as data, and their check against a summary: `python -m bench.quality.bars docs/bench/quality.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apt_ext.options import preset_options
from bench.speed.bars import SHARES
from bench.speed.plan import PUBLISHED, count

__all__ = ["BARS", "Bar", "check_bars"]


class Bar(NamedTuple):
    """What a preset has to reach: a share of DemoFusion's window evaluations at 1024 -> 4096 px on SDXL, and the verdicts on the kernel
    distance of windows at 4x against DemoFusion as published that will do; none asks for no quality, only that it is stated."""

    preset: str
    share: float
    verdicts: tuple[str, ...]


BARS = (
    Bar("Quality", SHARES["Quality"], ("better",)),
    Bar("Balanced", SHARES["Balanced"], ("better", "not told apart")),
    Bar("Fast", SHARES["Fast"], ()),
)
MEASURE, SCALE, BASE = "kernel_windows", 4, "encoded"


def _cost(bar: Bar) -> dict[str, Any]:
    found = count(*preset_options(bar.preset))["evaluations"]
    text = f"{bar.preset}: at most {bar.share:.0%} of DemoFusion's {PUBLISHED} window evaluations from 1024 to 4096 px"
    return {"bar": text, "met": found <= bar.share * PUBLISHED, "found": f"{found}, {found / PUBLISHED:.1%}"}


def _quality(bar: Bar, summary: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    wanted = {"group": "presets", "name": bar.preset, "scale": SCALE, "base": BASE, "model": model, "seed": seed}
    row = next((row for row in summary["rows"] if all(row[name] == value for name, value in wanted.items())), None)
    goal = " or ".join(bar.verdicts) or "its distance to DemoFusion stated"
    text = f"{bar.preset}, kernel distance of windows at {SCALE}x, {BASE} bases, model {model}, seed {seed}: {goal}"
    found = row.get("against", {}).get("differences", {}).get(MEASURE) if row else None
    if not row or not found:
        return {"bar": text, "met": False, "found": "not measured"}
    if min(row["pictures"], row["against"]["pictures"]) < summary["count"]:
        return {"bar": text, "met": False, "found": f"measured on {row['against']['pictures']} of {summary['count']} pictures only"}
    met = not bar.verdicts or found["verdict"] in bar.verdicts
    return {"bar": text, "met": met, "found": f"{found['verdict']}: {found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"}


def check_bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with whether it is met and what was found, for the first model and seed of a summary, where what is not measured is missed,
    and for every other with as many pictures at the bars' scale."""
    runs = [(model["sha256"][:12], seed) for model in summary["models"] for seed in summary["seeds"]]
    where = {"group": "presets", "scale": SCALE, "base": BASE}
    there = {(row["model"], row["seed"]) for row in summary["rows"] if row["pictures"] >= summary["count"] and where.items() <= row.items()}
    runs = [run for run in runs if run == runs[0] or run in there]
    return [check for bar in BARS for check in (_cost(bar), *(_quality(bar, summary, *run) for run in runs))]


def main(argv: Sequence[str]) -> int:
    """Check a summary's bars and print those that are missed."""
    missed = [check for check in check_bars(json.loads(Path(argv[0]).read_text())) if not check["met"]]
    for check in missed:
        print(f"MISSED {check['bar']}: {check['found']}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
