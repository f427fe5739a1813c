"""Measuring: a task's large pictures, each by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from apt_ext.core.schedule import shortcut_sigmas
from apt_ext.core.upscale import enlarge, phase_starts
from apt_ext.core.windows import Window, draw_windows
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.model import NATIVE
from bench.quality import measures
from bench.quality.kernel import features
from bench.quality.pictures import PIXELS, Bases, true_pictures
from bench.quality.store import Results
from bench.quality.tasks import Task, plan_of

__all__ = ["VERSION", "measure"]

VERSION = 1
"""Raise it with any change to a measure: pictures are then measured anew, but not made anew."""


def _last_windows(task: Task) -> list[Window]:
    """The native windows of a task's last step; for what has none, where those of the defaults would be."""
    plan, options = plan_of(task), task.setting.options
    steps = len(shortcut_sigmas(plan.sigmas, options.shortcut)) - 1
    return draw_windows(steps - 1, **phase_starts(plan.phases[-1], options, task.bench.model.facts, task.seed))


def _by_picture(rows: Tensor, count: int) -> Tensor:
    """(B * k, F) -> (B, k, F)."""
    return rows.reshape(count, -1, rows.shape[1])


@torch.no_grad()
def measure(task: Task, bases: Bases, latent: Tensor, work: Path) -> Results:
    """Decode a task's latents (B, 4, H, W) and measure each picture."""
    model, count, side = task.bench.model, len(bases.numbers), PIXELS * task.scale
    pictures = true_pictures(task.base, bases.numbers, side, work) if task.setting.how == "render" else model.decode(latent)
    # A generated base has no truth; what its shapes and their places should be is seen in the base itself.
    likeness = enlarge(bases.picture, (side, side)) if task.base == "generated" else true_pictures(task.base, bases.numbers, side, work)
    shift = measures.shift(latent, bases.latent)
    values = {
        "windows": _by_picture(features(measures.cut(pictures, PIXELS).flatten(0, 1)), count),
        "whole": _by_picture(features(measures.shrink(pictures, PIXELS)), count),
        "spectrum": measures.log_spectrum(pictures),
        "shift_mean": shift[:, 0],
        "shift_std": shift[:, 1],
        "shift_std_min": shift[:, 2],
        "monotonicity": measures.monotonicity(latent, NATIVE[0]),
        "agreement": measures.agreement(pictures, bases.picture),
        "seams": measures.seams(pictures, _last_windows(task), FACTOR),
        "structure": measures.structure(pictures, likeness, float(task.scale)),
        "repetition": measures.repetition(pictures, PIXELS),
    }
    return {name: value.float().numpy() for name, value in values.items()}
