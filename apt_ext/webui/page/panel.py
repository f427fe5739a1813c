"""What a job would do, for the panel under the accordion: phases, windows and costs, from the very functions that the job itself uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from modules import sd_models, sd_samplers

from apt_ext.core.plan import demofusion_views
from apt_ext.webui.hosts.a1111 import native_side
from apt_ext.webui.latents.sizes import FACTOR, hires_enlarged, hires_sizes, picture_sizes
from apt_ext.webui.latents.upscalers import LATENT, hires_upscaler, resolved
from apt_ext.webui.model import family_of
from apt_ext.webui.page.request import parse
from apt_ext.webui.page.settings import default_values
from apt_ext.webui.run.layout import Layout, lay_out
from apt_ext.webui.run.pace import last_pace
from apt_ext.webui.run.samplers import chooses_levels

__all__ = ["add_route", "describe", "plan"]

LATENT_NOTE = "A Latent upscaler: shapes drift, and blur below a denoising strength of about 0.5; Lanczos keeps the picture."
COLOUR_NOTE = "The colour fix keeps shapes too: at this denoising strength the old ones show through the new; use 4 or more, or 0."
LEVELS_NOTE = "This sampler chooses its own steps, so the number of evaluations is an estimate."
SIZE_NOTE = "The picture is not to become larger, so it is only drawn anew at its size."

MOST_PIXELS, MOST_STEPS = 32768, 1000
COLOURS_ONLY = 2.0  # std in pixels of the smaller picture, from which the colour fix leaves shapes alone
KEEPS_SHAPES = 0.5  # denoising strength up to which a phase does so by itself


def describe(layout: Layout, model: Any) -> dict[str, Any]:
    """A layout as data for the panel: sizes in pixels, views of the model, the last phase's windows as [x, y, width, height] in pixels, and, once
    something was measured here, seconds per picture and the MiB that a GPU gave at most."""
    facts, plan = layout.facts, layout.plan
    phases = [
        {
            "size": [setup.phase.size.columns * FACTOR, setup.phase.size.rows * FACTOR],
            "windows": setup.window_count(0),
            "dilated": max((view.dilated for view in views), default=0),
            "steps": plan.steps,
            "evaluations": sum(map(sum, views)),
        }
        for setup, views in zip(plan.setups, plan.views, strict=True)
    ]
    last = plan.setups[-1]
    end = last.phase.size
    drawn = [[w.left * FACTOR, w.top * FACTOR, w.width * FACTOR, w.height * FACTOR] for w in last.windows(0)]
    area = end.rows * end.columns / (min(end.rows, facts.window.rows) * min(end.columns, facts.window.columns))
    pace = last_pace(family_of(model), facts.window.rows)
    return {
        "phases": phases,
        "evaluations": plan.evaluations,
        "seconds": None if pace is None else round(pace.seconds * plan.evaluations, 1),
        "memory": None if pace is None or not pace.memory else round(pace.memory),
        "demofusion": demofusion_views(layout.start, end, facts),
        "plain": round(sum(plan.calls) * area),
        "drawing": {"size": phases[-1]["size"], "windows": drawn},
    }


def plan(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The panel's content for what the page shows now.

    Args:
        asked: "img2img" (bool), "first" and "target" [width, height], "cut" where the target may have another aspect, for img2img "given" and
            "resize_mode", "steps", "hires_steps", "denoising", "sampler", "scheduler", "upscaler" of the host's field in a hires pass, and
            "settings": the controls by name.

    Raises:
        ValueError: in one sentence, where the job would be refused.
    """
    model = sd_models.model_data.sd_model
    if model is None:
        raise ValueError("no checkpoint is loaded yet; the plan appears with the first picture")
    _check_extent(asked)
    request = parse([dict(asked["settings"])], default_values())
    img2img = bool(asked["img2img"])
    name, steps = str(asked["sampler"]), int(asked["steps"])
    strength = float(asked["denoising"])
    own = request.options.upscaler
    if img2img:
        upscaler = LATENT if int(asked["resize_mode"]) == 3 else resolved(own)
        start, target = picture_sizes(tuple(asked["given"]), tuple(asked["target"]), int(asked["resize_mode"]), native_side(model))
    else:
        upscaler = hires_upscaler(SimpleNamespace(hr_upscaler=asked.get("upscaler")), own)
        first, wanted = ((int(asked[name][0]), int(asked[name][1])) for name in ("first", "target"))
        start, target = hires_sizes(first, *(hires_enlarged(first, wanted) if asked.get("cut") else (wanted, (0, 0))))
    p = SimpleNamespace(
        denoising_strength=strength,
        steps=steps,
        is_hr_pass=not img2img,
        scheduler=asked["scheduler"],
        hr_scheduler=asked["scheduler"],
        sampler_noise_scheduler_override=None,
        extra_generation_params={},
    )
    sampler = sd_samplers.create_sampler(name, model)
    layout = lay_out(p, sampler, request.options, start, target, None if img2img else int(asked["hires_steps"]) or steps)
    smaller = img2img and start == target and target[1] * FACTOR <= asked["given"][0] and target[0] * FACTOR <= asked["given"][1]
    shapes_kept = 0 < request.options.colour_fix < COLOURS_ONLY and strength > KEEPS_SHAPES
    said = {LATENT_NOTE: upscaler == LATENT, COLOUR_NOTE: shapes_kept, LEVELS_NOTE: chooses_levels(sampler.funcname), SIZE_NOTE: smaller}
    notes = [note for note, holds in said.items() if holds]
    return {"start": [start[1] * FACTOR, start[0] * FACTOR], "denoising": strength, "notes": notes, **describe(layout, model)}


def _check_extent(asked: Mapping[str, Any]) -> None:
    """Keep a plan from taking the server's time and memory."""
    for side in (side for name in ("first", "target", "given") for side in asked.get(name, ())):
        if not 0 < side <= MOST_PIXELS:
            raise ValueError(f"a side of {side} pixels cannot be planned; use 1 to {MOST_PIXELS}")
    for steps in (asked["steps"], asked["hires_steps"]):
        if not 0 <= steps <= MOST_STEPS:
            raise ValueError(f"{steps} steps cannot be planned; use up to {MOST_STEPS}")


def add_route(_: Any, app: Any) -> None:
    """Serve the panel at /apt/plan."""
    from fastapi import Body

    def answer(asked: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        try:
            return plan(asked)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            return {"error": str(error)}

    app.add_api_route("/apt/plan", answer, methods=["POST"])
