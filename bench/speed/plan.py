"""Window evaluations of the presets, against DemoFusion's published settings. Nothing is run: the engine's own plan is counted."""

from __future__ import annotations

from typing import Any

from apt_ext.core.clock import sampler_calls, step_calls
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import make_plan
from apt_ext.demo.samplers import make_sigmas
from apt_ext.options import PRESETS, Preset
from bench.speed.stand_in import stable_diffusion

__all__ = ["PUBLISHED", "count", "plan"]

PUBLISHED = 50 * (13 + 34 + 65)
"""Window evaluations of DemoFusion (Du et al., CVPR 2024) from 1024 to 4096 pixels: 50 steps of 9 + 4, 25 + 9 and 49 + 16 views."""


def count(preset: Preset, base: int = 128, scale: int = 4) -> dict[str, int]:
    """Views per path of a square picture's way to `scale` times its size; SDXL's window is the base, `base` latent pixels."""
    facts, sigmas = stable_diffusion(base)
    start, target, own = (base, base), (base * scale, base * scale), preset.schedule
    levels = shortcut_sigmas(make_sigmas(own.spacing, own.steps, sigmas), own.strength)
    made = make_plan(start, target, preset.options, facts, levels, step_calls(levels.tolist(), sampler_calls(own.sampler)))
    return {
        "phases": len(made.setups),
        "steps": made.steps * len(made.setups),
        "local": sum(total.local for total in made.totals),
        "dilated": sum(total.dilated for total in made.totals),
        "evaluations": made.evaluations,
    }


def plan() -> dict[str, Any]:
    """Evaluations and share of the published ones: DemoFusion's own settings as this engine counts them, and every preset."""
    rows = []
    for name, preset in {"DemoFusion": PRESETS["Published"], **{name: preset for name, preset in PRESETS.items() if name != "Published"}}.items():
        counted = count(preset)
        run = {"sampler": preset.schedule.sampler, "schedule": preset.schedule.spacing}
        rows.append({"name": name, **run, **counted, "share": round(counted["evaluations"] / PUBLISHED, 4)})
    return {"published": PUBLISHED, "rows": rows}
