"""One picture from the command line: what is said before, the files that are written, and the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from apt_ext import __version__
from apt_ext.core.phases import Phase
from apt_ext.core.ranks.ideal import ideal_speedup
from apt_ext.demo.job import Outcome, Shown, peak_memory_mib, plan_job, run_job, seconds_per_view, show
from apt_ext.demo.masks import outside
from apt_ext.demo.output import Output
from apt_ext.demo.pictures import WRITTEN, Picture
from apt_ext.demo.wanted import BaseJob, Model, Source

__all__ = ["Order", "announce", "enlarge_one", "file_text", "machine", "report_of", "stem_of"]


def file_text(model: Model, job: BaseJob, image: Image.Image) -> dict[str, str]:
    """What is written into a picture file, so that the job can be repeated from it."""
    return {"parameters": model.infotext(job, image.size), "Software": f"apt_ext {__version__}"}


def _with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return image
    image = image.copy()
    image.putalpha(alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image


def announce(model: Model, source: Source, jobs: Mapping[str, BaseJob], title: str = "") -> None:
    """Say what will be done and about how long it takes, before it begins."""
    for label, job in jobs.items():
        plan = plan_job(model, source, job)
        views = plan.evaluations
        sizes = ", ".join(f"{phase.size.columns * model.factor}x{phase.size.rows * model.factor}" for phase in plan.phases)
        faster = ideal_speedup(plan, model.ranks.count)
        seconds = views * seconds_per_view(model, job, source) / faster
        took = f"about {seconds / 60:.0f} minutes" if seconds > 90 else f"about {seconds:.0f} seconds"
        print(f"{title}{label}: {source.pixels[0]}x{source.pixels[1]} px to {sizes}, {views} window evaluations, {took}", file=sys.stderr)
        if faster < 0.75 * model.ranks.count:
            batch = job.options.window_batch
            print(f"a window batch of {batch} makes {model.ranks.count} processes at best {faster:.1f} times as fast; use a smaller one", file=sys.stderr)
        if job.options.method == "accdiffusion" and not model.prompts:
            print("accdiffusion: with window interaction; words per window do not apply, since the embedded model has no prompts", file=sys.stderr)


def report_of(model: Model, job: BaseJob, source: Source, outcome: Outcome) -> dict[str, Any]:
    """Settings, phases and costs of a finished job."""
    return {
        "settings": asdict(job),
        "seed": job.seed,
        "input": list(source.pixels),
        "base": [source.base.shape[-1] * model.factor, source.base.shape[-2] * model.factor],
        "phases": outcome.phases,
        "window_evaluations": sum(phase["window_evaluations"] for phase in outcome.phases),
        "seconds": round(outcome.seconds, 2),
        "ranks": len(outcome.by_rank),
        "evaluations_by_rank": outcome.by_rank,
    }


def machine(model: Model) -> dict[str, Any]:
    """Versions, device and memory."""
    memory = peak_memory_mib(model.device)
    versions = {"apt_ext": __version__, "torch": torch.__version__, "device": str(model.device)}
    return {"versions": versions, **({"model": model.about} if model.about else {}), "peak_memory_mib": None if memory is None else round(memory)}


def stem_of(name: str) -> str:
    """A result's name without its format's ending, where it has one; a dot of its own stays."""
    return Path(name).stem if Path(name).suffix.lower() in WRITTEN else name


class Order(NamedTuple):
    """One picture to make.

    Attributes:
        model, source, job: by what, from what, and what is wanted.
        name: of the result, and of the phases. `picture`: where its transparency and colour profile come from.
    """

    model: Model
    source: Source
    job: BaseJob
    name: str
    picture: Picture | None = None


def enlarge_one(output: Output, order: Order, *, shown: Shown, keep: bool = False) -> tuple[Outcome, Image.Image, Path]:
    """One order with its pictures: each phase is on disk as soon as it is finished, until the result is.

    Args:
        shown: the progress bars. `keep`: whether the phases stay.
    """
    model, source, job, name, picture = order
    phases: list[Path] = []
    stem = stem_of(name)

    def save(name: str, image: Image.Image) -> Path:
        alpha, profile = (picture.alpha, picture.profile) if picture else (None, None)
        return output.picture(name, _with_alpha(image, alpha), file_text(model, job, image), profile)

    def save_phase(phase: Phase, latent: Tensor, count: int) -> None:
        if phase.number < count:
            image = show(model, source, latent, phase.size.columns * model.factor / source.covered[0])
            phases.append(save(f"{stem}_phase{phase.number}of{count}", image))

    outcome = run_job(model, source, job, shown=shown, on_finished=save_phase)
    shown_whole = show(model, source, outcome.latent, job.scale, job.options.colour_fix)
    image = outside(shown_whole, source, job.options.upscaler, model.device, model.ranks.map)
    path = save(name, image)
    for phase in [] if keep else phases:
        output.remove(phase)
    return outcome, image, path
