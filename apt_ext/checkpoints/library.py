"""The library call: one picture on a checkpoint, with progress and a way to stop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from apt_ext.checkpoints.command import mask_of
from apt_ext.checkpoints.job import WINDOW_BATCH, PromptJob
from apt_ext.checkpoints.model import Checkpoint
from apt_ext.core.phases import Phase
from apt_ext.demo.enlarging import machine, report_of
from apt_ext.demo.job import Outcome, Shown, plan_job, plan_picture, run_job, show
from apt_ext.demo.masks import outside
from apt_ext.demo.pictures import load_picture, to_tensor
from apt_ext.demo.sources import from_picture, from_words
from apt_ext.demo.wanted import Source
from apt_ext.options import Options, Schedule, beside_mask, preset_named, settings

__all__ = ["Progress", "Upscaled", "job_for", "upscale"]

Picture = Image.Image | str | os.PathLike[str]
Progress = Callable[[int, int, int], None]
"""(window evaluations done, of how many, number of the phase)."""


class Upscaled(NamedTuple):
    """What came out.

    Attributes:
        image: the picture. `report`: settings, phases and costs, as the command line writes them beside it.
        complete: False where the job was stopped; the picture is then what the last finished phase made, enlarged to the size that was asked for.
        infotext: what the WebUI reads from a picture's "parameters".
    """

    image: Image.Image
    report: dict[str, Any]
    complete: bool
    infotext: str


class _Stopped(Exception):
    """The caller wants no more."""


class _Steps:
    """Stands where a job expects its bar, and tells the caller."""

    def __init__(self, totals: Sequence[int], on_progress: Progress | None, interrupted: Callable[[], bool] | None):
        self._totals, self._on_progress, self._interrupted, self._done = totals, on_progress, interrupted, 0

    def update(self, count: int) -> None:
        """So many windows more are evaluated."""
        self._done += count
        if self._on_progress is not None:
            reached = [sum(self._totals[:number]) for number in range(1, len(self._totals) + 1)]
            phase = next((number for number, most in enumerate(reached, 1) if self._done <= most), len(reached))
            self._on_progress(self._done, max(self._done, reached[-1]), phase)
        if self._interrupted is not None and self._interrupted():
            raise _Stopped


def job_for(
    prompt: str,
    negative: str,
    scale: float,
    preset: str,
    guidance: float,
    seed: int,
    masked: bool,
    given: Mapping[str, Any],
    guided_above: float = 0.0,
) -> PromptJob:
    """A job from what a program says.

    Args:
        given: settings of `Options` and `Schedule` by their names, in the place of the preset's.

    Raises:
        ValueError: in one sentence, for a name or a value that cannot be used.
    """
    own, names = preset_named(preset), {kind: settings(kind) for kind in (Options, Schedule)}
    unknown = [name for name in given if name not in names[Options] and name not in names[Schedule]]
    if unknown:
        raise ValueError(f"setting {unknown[0]!r} does not exist; use some of {', '.join([*names[Options], *names[Schedule]])}")
    chosen: dict[str, Any] = {"window_batch": WINDOW_BATCH, **{name: value for name, value in given.items() if name in names[Options]}}
    options = dataclasses.replace(own.options, **chosen)
    options = beside_mask(options) if masked else options
    schedule = dataclasses.replace(own.schedule, **{name: value for name, value in given.items() if name in names[Schedule]})
    return PromptJob(scale, options, schedule, guidance, seed, guided_above, prompt, negative)


def _rgb(picture: Picture) -> Image.Image:
    return picture.convert("RGB") if isinstance(picture, Image.Image) else load_picture(picture).rgb


def upscale(
    model: Checkpoint,
    image: Picture | None = None,
    *,
    prompt: str = "",
    negative: str = "",
    scale: float = 4.0,
    preset: str = "Balanced",
    guidance: float | None = None,
    guided_above: float = 0.0,
    seed: int = 1,
    mask: Picture | None = None,
    control_images: Sequence[Picture] = (),
    on_progress: Progress | None = None,
    interrupted: Callable[[], bool] | None = None,
    **given: Any,
) -> Upscaled:
    """Enlarge a picture, or one that the checkpoint makes first.

    Args:
        model: from `open_checkpoint` or `from_pipeline`.
        image: a picture or its path; None lets the checkpoint make one of its own size from the prompt.
        prompt, negative: what the picture shows, and what it is not to show.
        scale: along a side, above 1 and up to 16; results have up to 8192 pixels a side.
        preset: Fast, Balanced, Quality or Published. `given`: settings in the place of the preset's, by the names of `Options` and `Schedule`:
            method="accdiffusion", strength=0.3, steps=30, window_batch=8, ...
        guidance: classifier-free; the family's usual one where it is left out. `guided_above`: the noise level below which it is left out.
        seed: the same one makes the same picture.
        mask: white where something new may come in. `control_images`: of the checkpoint's ControlNets; the picture itself where they are fewer.
        on_progress: told (evaluations done, of how many, number of the phase) after every model call.
        interrupted: asked after every model call; True stops the job.

    Returns:
        The picture, the report, and whether the job ran to its end.

    Raises:
        ValueError: in one sentence, for whatever cannot be used, before anything is sampled.
    """
    job = job_for(prompt, negative, scale, preset, model.family.guidance if guidance is None else guidance, seed, mask is not None, given, guided_above)
    if image is None:
        plan_picture(model, (model.first_size.columns * model.factor, model.first_size.rows * model.factor), job)
        source = from_words(model, job)
    else:
        picture = _rgb(image)
        plan_picture(model, picture.size, job)
        source = from_picture(model, picture, job)
    hints = tuple(to_tensor(_rgb(one)) / 2 + 0.5 for one in control_images)
    source = dataclasses.replace(source, hints=hints, mask=None if mask is None else mask_of(_rgb(mask), source))
    last: list[tuple[Phase, Tensor]] = []
    steps = _Steps([sum(total) for total in plan_job(model, source, job).totals], on_progress, interrupted)
    try:
        outcome = run_job(model, source, job, shown=Shown(quiet=True, bar=steps), on_finished=lambda phase, z, count: last.append((phase, z)))
        made, complete = show(model, source, outcome.latent, job.scale, job.options.colour_fix), True
    except _Stopped:
        outcome, made, complete = Outcome(source.latent, [], 0.0, []), _so_far(model, source, last), False
    size = (round(source.pixels[0] * job.scale), round(source.pixels[1] * job.scale))
    made = outside(made if made.size == size else made.resize(size, Image.Resampling.LANCZOS), source, job.options.upscaler, model.device)
    report = report_of(model, job, source, outcome) | machine(model) | {"complete": complete}
    return Upscaled(made, report, complete, model.infotext(job, made.size))


def _so_far(model: Checkpoint, source: Source, last: list[tuple[Phase, Tensor]]) -> Image.Image:
    """The picture of the last finished phase, or the one that the job began with."""
    if not last:
        return show(model, source, source.latent, 1.0)
    phase, latent = last[-1]
    return show(model, source, latent, phase.size.columns * model.factor / source.covered[0])
