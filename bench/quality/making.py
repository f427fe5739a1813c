"""Making: a task's large pictures, each by the very code that the command line runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apt_ext.core.colour import fix_colour
from apt_ext.demo.job import run_job
from apt_ext.demo.pictures import to_picture, to_tensor
from apt_ext.demo.sources import from_picture
from bench.quality.pictures import PIXELS, model_of, true_pictures
from bench.quality.store import Results
from bench.quality.tasks import Task, job_of

__all__ = ["finish", "lanczos", "make"]


def lanczos(picture: Tensor, side: int) -> Image.Image:
    """A plain enlargement of (3, h, h) in -1..1."""
    return to_picture(picture).resize((side, side), Image.Resampling.LANCZOS)


def _again(task: Task, image: Image.Image) -> Image.Image:
    """What the autoencoder makes of a picture."""
    model = model_of(task.bench)
    return to_picture(model.decode(model.encode(to_tensor(image)))[0])


def _look_up(task: Task, number: int, work: Path) -> Image.Image:
    """A baseline, which takes no sampling."""
    side = PIXELS * task.scale
    large = lanczos(true_pictures(task.kind, [number], PIXELS, work)[0], side)
    true = to_picture(true_pictures(task.kind, [number], side, work)[0])
    return {"lanczos": lambda: large, "lanczos again": lambda: _again(task, large), "truth": lambda: true, "truth again": lambda: _again(task, true)}[
        task.setting.how
    ]()


def _one(task: Task, number: int, work: Path) -> tuple[Tensor, float, int, float]:
    """A picture (3, h, w), its seconds, its window evaluations, and the std of the last phase's clean latent over that of the base."""
    if not task.sampled:
        return to_tensor(_look_up(task, number, work))[0], 0.0, 0, 1.0
    model, job = model_of(task.bench), job_of(task, number)
    source = from_picture(model, to_picture(true_pictures(task.kind, [number], PIXELS, work)[0]))
    outcome = run_job(model, source, job)
    spread = outcome.phases[-1]["statistics_shift"]["matched"]["std"]
    return model.decode(outcome.latent)[0].cpu(), outcome.seconds, sum(phase["window_evaluations"] for phase in outcome.phases), spread


def make(task: Task, numbers: Sequence[int], work: Path, on_evaluations: Callable[[int], object] = lambda count: None) -> Results:
    """The large pictures before their colours are fixed, and what they cost.

    Args:
        on_evaluations: told the window evaluations of each finished picture.

    Returns:
        "pixels" (B, 3, h, w) in -1..1, in half precision, a sixteenth of a level of 8 bits, and per picture "seconds", "evaluations" and "spread".
    """
    pictures, rest = [], []
    for number in numbers:
        picture, *cost = _one(task, number, work)
        pictures.append(picture.numpy().astype(np.float16))
        rest.append(cost)
        on_evaluations(int(cost[1]))
    seconds, count, spread = zip(*rest, strict=True)
    return {"pixels": np.stack(pictures), "seconds": np.array(seconds, np.float32), "evaluations": np.array(count), "spread": np.array(spread, np.float32)}


def finish(task: Task, numbers: Sequence[int], pixels: NDArray[np.float16], work: Path) -> NDArray[np.uint8]:
    """The finished pictures (B, h, w, 3), as the command line saves them: with the colours of the inputs where the setting says so."""
    width = task.setting.options.colour_fix if task.sampled else 0.0
    fixed = fix_colour(torch.from_numpy(pixels).float(), true_pictures(task.kind, numbers, PIXELS, work), width)
    return np.stack([np.asarray(to_picture(picture)) for picture in fixed])
