"""What a job would do, for the panel under the accordion: phases, windows and costs, from the very functions that the job itself uses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from modules import shared

from apt_ext.core.plan import demofusion_views
from apt_ext.webui.hosts.borders import seamless_axes
from apt_ext.webui.hosts.checkpoint import family_of, is_chosen, native_side
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.latents.sizes import hires_enlarged, hires_sizes, picture_sizes
from apt_ext.webui.latents.upscalers import LATENT, hires_upscaler, resolved
from apt_ext.webui.model import FACTOR
from apt_ext.webui.page.asked import Asked, read
from apt_ext.webui.page.controls import COLOUR_NOTE, LATENT_NOTE, LATER_NOTE, LEVELS_NOTE, SIZE_NOTE
from apt_ext.webui.page.request import parse
from apt_ext.webui.page.settings import default_values
from apt_ext.webui.run.layout import Layout, lay_out, sampler_named
from apt_ext.webui.run.pace import last_pace
from apt_ext.webui.run.samplers import chooses_levels

__all__ = ["describe", "plan"]

MOST_DRAWN = 4096  # windows: more of them would be a grey square
COLOURS_ONLY = 2.0  # std in pixels of the smaller picture, from which the colour fix leaves shapes alone
KEEPS_SHAPES = 0.5  # denoising strength up to which a phase does so by itself


def describe(layout: Layout, model: Any) -> dict[str, Any]:
    """A layout as data for the panel: sizes in pixels, views of the model, the last phase's windows as [x, y, width, height] in pixels, and, once
    something was measured here, seconds per picture and the MiB that the GPU, or else the server, took at most."""
    facts, plan = layout.facts, layout.plan
    phases = [
        {
            "size": [setup.phase.size.columns * FACTOR, setup.phase.size.rows * FACTOR],
            "windows": setup.window_count(0),
            "dilated": setup.grid.views if setup.grid and any(view.dilated for view in views) else 0,
            "steps": plan.steps,
            "evaluations": sum(map(sum, views)),
        }
        for setup, views in zip(plan.setups, plan.views, strict=True)
    ]
    last = plan.setups[-1]
    end = last.phase.size
    shown = last.windows(0) if last.window_count(0) <= MOST_DRAWN else []
    drawn = [[w.left * FACTOR, w.top * FACTOR, w.width * FACTOR, w.height * FACTOR] for w in shown]
    area = end.rows * end.columns / (min(end.rows, last.window.rows) * min(end.columns, last.window.columns))
    pace = last_pace(family_of(model), last.window)
    return {
        "phases": phases,
        "evaluations": plan.evaluations,
        "seconds": None if pace is None else round(pace.seconds * plan.evaluations, 1),
        "memory": None if pace is None or not pace.memory else round(pace.memory),
        "gpu": pace is not None and pace.gpu,
        "demofusion": demofusion_views(layout.start, end, facts),
        "plain": round(sum(plan.calls) * area),
        "drawing": {"size": phases[-1]["size"], "windows": drawn},
    }


def plan(raw: Any) -> dict[str, Any]:
    """The panel's content for what the page shows now, from the fields of `asked.Asked`.

    Raises:
        ValueError: in one sentence, where the job would be refused.
    """
    asked = read(raw)
    model = host().loaded()
    if model is None:
        raise ValueError("no checkpoint is loaded yet; the plan appears with the first picture")
    later = [] if is_chosen(model, asked.checkpoint) else [LATER_NOTE]
    try:
        made = _plan(asked, model)
    except ValueError as error:
        raise ValueError(". ".join([str(error), *later])) from error
    return {**made, "later": bool(later), "notes": [*later, *made["notes"]]}


def _plan(asked: Asked, model: Any) -> dict[str, Any]:
    request = parse([asked.settings], default_values())
    own, given, target = request.options.upscaler, asked.given, asked.target
    if asked.img2img:
        upscaler = LATENT if asked.resize_mode == 3 else resolved(own)
        start, end = picture_sizes(given, target, asked.resize_mode, native_side(model))
    else:
        upscaler = hires_upscaler(SimpleNamespace(hr_upscaler=asked.upscaler), own)
        start, end = hires_sizes(asked.first, *(hires_enlarged(asked.first, target) if asked.cut else (target, (0, 0))))
    rows, columns = (side * FACTOR for side in end)
    p = SimpleNamespace(  # all that any host's schedules read of a job
        sd_model=model,
        denoising_strength=asked.denoising,
        steps=asked.steps,
        width=columns,
        height=rows,
        hr_upscale_to_x=columns,
        hr_upscale_to_y=rows,
        eta=None,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=math.inf,
        is_hr_pass=not asked.img2img,
        scheduler=asked.scheduler,
        hr_scheduler=asked.scheduler,
        distilled_cfg_scale=asked.shift,
        hr_distilled_cfg=asked.shift,
        sampler_noise_scheduler_override=None,
        extra_generation_params={},
    )
    sampler = sampler_named(asked.sampler, p)
    around = seamless_axes(None, bool(shared.opts.tiling))
    layout = lay_out(p, sampler, request.options, start, end, None if asked.img2img else asked.hires_steps or asked.steps, around)
    smaller = asked.img2img and start == end and end[1] * FACTOR <= given[0] and end[0] * FACTOR <= given[1]
    shapes_kept = 0 < request.options.colour_fix < COLOURS_ONLY and asked.denoising > KEEPS_SHAPES
    said = {LATENT_NOTE: upscaler == LATENT, COLOUR_NOTE: shapes_kept, LEVELS_NOTE: chooses_levels(sampler.funcname), SIZE_NOTE: smaller}
    notes = [note for note, holds in said.items() if holds]
    return {"start": [start[1] * FACTOR, start[0] * FACTOR], "denoising": asked.denoising, "notes": notes, **describe(layout, model)}
