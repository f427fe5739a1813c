"""Window evaluations of the presets, against DemoFusion's published settings. Nothing is run: the engine's own plan is counted."""

from __future__ import annotations

from typing import Any

from apt_ext.core.clock import evaluations_per_step
from apt_ext.core.cost import job_cost
from apt_ext.core.phases import plan_phases
from apt_ext.demo.samplers import make_sigmas
from apt_ext.options import PRESETS, Options, preset_options
from apt_ext.options import PUBLISHED as SETTINGS
from bench.speed.stand_in import stable_diffusion

__all__ = ["DEMOFUSION", "PUBLISHED", "count", "plan"]

PUBLISHED = 50 * (13 + 34 + 65)
"""Window evaluations of DemoFusion (Du et al., CVPR 2024) from 1024 to 4096 pixels: 50 steps of 9 + 4, 25 + 9 and 49 + 16 views."""

DEMOFUSION = Options(**SETTINGS)
"""Its published settings: every step, phase by phase, both paths at every step, zeros beyond the border."""


def count(options: Options, sampler: str, schedule: str = "normal", base: int = 128, scale: int = 4) -> dict[str, int]:
    """Views per path of a square picture's way to `scale` times its size; SDXL's window is the base, `base` latent pixels."""
    facts, sigmas = stable_diffusion(base)
    start, target = (base, base), (base * scale, base * scale)
    phases = plan_phases(start, start, target, options.phase_ratios() or options.phases)
    costs = job_cost(phases, options, facts, make_sigmas(schedule, options.steps, sigmas), evaluations_per_step(sampler))
    return {
        "phases": len(costs),
        "steps": sum(cost.steps for cost in costs),
        "local": sum(cost.local for cost in costs),
        "dilated": sum(cost.dilated for cost in costs),
        "evaluations": sum(cost.evaluations for cost in costs),
    }


def plan() -> dict[str, Any]:
    """Evaluations and share of the published ones: DemoFusion's own settings as this engine counts them, and every preset."""
    jobs = {"DemoFusion": (DEMOFUSION, "euler", "normal"), **{name: preset_options(name) for name in PRESETS if name != "Published"}}
    rows = []
    for name, job in jobs.items():
        counted = count(*job)
        rows.append({"name": name, "sampler": job[1], "schedule": job[2], **counted, "share": round(counted["evaluations"] / PUBLISHED, 4)})
    return {"published": PUBLISHED, "rows": rows}
