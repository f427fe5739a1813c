"""The bars that the presets have to clear, as data, and their check against a summary: `python -m bench.bars docs/bench/quality.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apt_ext.core.cost import job_cost
from apt_ext.core.evaluations import evaluations_per_step
from apt_ext.core.phases import plan_phases
from apt_ext.core.schedule import discrete_timestep
from apt_ext.core.upscale import ModelFacts
from apt_ext.demo.model import alphas_cumprod
from apt_ext.demo.samplers import make_sigmas
from apt_ext.options import Options, preset_named, preset_options

__all__ = ["BARS", "DEMOFUSION_EVALUATIONS", "Bar", "check_bars", "sdxl_evaluations"]


class Bar(NamedTuple):
    """What a preset has to reach: a share of DemoFusion's window evaluations at 1024 -> 4096 px on SDXL, and the verdicts on the kernel
    distance of windows at 4x against DemoFusion as published that will do; none asks for no quality, only that it is stated."""

    preset: str
    share: float
    verdicts: tuple[str, ...]


BARS = (
    Bar("Quality", 0.60, ("better",)),
    Bar("Balanced", 0.20, ("better", "not told apart")),
    Bar("Fast", 0.10, ()),
)
DEMOFUSION_EVALUATIONS = 50 * ((9 + 4) + (25 + 9) + (49 + 16))
"""What DemoFusion's own code evaluates from 1024 to 4096 px: in each of 50 steps, the local windows and the dilated views of three phases."""
MEASURE, SCALE, BASE = "kernel_windows", 4, "encoded"


def sdxl_evaluations(options: Options, sampler: str, schedule: str) -> int:
    """Window evaluations of 1024 -> 4096 px on SDXL, counted from the plan: windows of 128 latent pixels and Stable Diffusion's noise levels."""
    alphas = alphas_cumprod()
    sigmas = ((1 - alphas) / alphas).sqrt()
    facts = ModelFacts((128, 128), 8, float(sigmas[-1]), discrete_timestep(sigmas))
    phases = plan_phases((128, 128), (128, 128), (512, 512), options.phase_ratios() or options.phases)
    cost = job_cost(phases, options, facts, make_sigmas(schedule, options.steps, sigmas), evaluations_per_step(sampler))
    return sum(phase.evaluations for phase in cost)


def _cost(bar: Bar) -> dict[str, Any]:
    found = sdxl_evaluations(*preset_options(bar.preset), preset_named(bar.preset).schedule)
    text = f"{bar.preset}: at most {bar.share:.0%} of DemoFusion's {DEMOFUSION_EVALUATIONS} window evaluations from 1024 to 4096 px"
    share = found / DEMOFUSION_EVALUATIONS
    return {"bar": text, "met": share <= bar.share, "found": f"{found}, {share:.1%}"}


def _quality(bar: Bar, summary: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    wanted = {"group": "presets", "name": bar.preset, "scale": SCALE, "base": BASE, "model": model, "seed": seed}
    row = next((row for row in summary["rows"] if all(row[name] == value for name, value in wanted.items())), None)
    goal = " or ".join(bar.verdicts) or "its distance to DemoFusion stated"
    text = f"{bar.preset}, kernel distance of windows at {SCALE}x, {BASE} bases, model {model}, seed {seed}: {goal}"
    found = row.get("against", {}).get("differences", {}).get(MEASURE) if row else None
    if not row or not found or found["mean"] is None:
        return {"bar": text, "met": False, "found": "not measured"}
    if min(row["pictures"], row["against"]["pictures"]) < summary["count"]:
        return {"bar": text, "met": False, "found": f"measured on {row['against']['pictures']} of {summary['count']} pictures only"}
    met = not bar.verdicts or found["verdict"] in bar.verdicts
    return {"bar": text, "met": met, "found": f"{found['verdict']}: {found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"}


def check_bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with whether it is met and what was found, for each model and seed of a summary. What is not measured is missed."""
    runs = [(model["sha256"][:12], seed) for model in summary["models"] for seed in summary["seeds"]]
    return [check for bar in BARS for check in (_cost(bar), *(_quality(bar, summary, *run) for run in runs))]


def main(argv: Sequence[str]) -> int:
    """Check a summary's bars and print those that are missed."""
    missed = [check for check in check_bars(json.loads(Path(argv[0]).read_text())) if not check["met"]]
    for check in missed:
        print(f"MISSED {check['bar']}: {check['found']}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
