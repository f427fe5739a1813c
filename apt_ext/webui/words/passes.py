"""Words per window in a job: seen in its first pass or in its picture, handed to its phases, drawn over what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from apt_ext.core.types import ModelFacts, Size, size_of
from apt_ext.core.windows import Window
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.latents.resizing import resized_conditioning
from apt_ext.webui.latents.saving import infotext_of, save_beside
from apt_ext.webui.latents.sources import hires_cut_of
from apt_ext.webui.model import FACTOR
from apt_ext.webui.state import Job, job_of
from apt_ext.webui.words.picture import draw_labels
from apt_ext.webui.words.seen import Schedules, Seen, gather_from_latent, gathering, prompt_schedules, seen_words
from apt_ext.webui.words.windows import Crop, Encodings

__all__ = ["Words", "draw_words", "listen", "show_drawn", "window_words"]

MADE_BY_ANOTHER = "APT: another extension has made the prompt's conditioning, so every window has the whole prompt alone, without words or regions of its own."


@dataclass
class Words:
    """Prompts per window, for one pass.

    Attributes:
        seen: where the words are; None where every window keeps the prompt, and only regions add to it. `crop`: what this pass shows of what was seen.
        cond: the host's conditioning of this pass. `schedules`: its texts. `encoded`: of the job.
        on_windows: told the last phase's windows at its first step and, for each picture, what each of them keeps.
    """

    seen: Seen | None
    cond: Any
    schedules: Schedules
    crop: Crop
    encoded: Encodings
    on_windows: Callable[[list[Window], list[list[str]]], None]


def listen(p: Any, job: Job, sampler: Any) -> None:
    """Let the first pass, about to sample, gather where it sees the words of its prompts."""
    sampler.__dict__.pop("sample", None)
    original = sampler.sample

    def sample(p: Any, x: Tensor, conditioning: Any, *args: Any, **kwargs: Any) -> Any:
        sampler.__dict__.pop("sample", None)
        schedules = prompt_schedules(p, conditioning)
        if schedules is None:  # `window_words` says so
            return original(p, x, conditioning, *args, **kwargs)
        with gathering(sampler.model_wrap_cfg, schedules, size_of(x)) as maps:
            samples = original(p, x, conditioning, *args, **kwargs)
        job.seen = seen_words(maps)
        return samples

    job.seen = None
    sampler.sample = sample


def window_words(p: Any, job: Job, facts: ModelFacts, z: Tensor, x: Tensor, cond: Any, image_conditioning: Tensor | None) -> Words | None:
    """The prompts of the windows; where there was no first pass to see the words in, one short pass over the base latent looks for them."""
    schedules = prompt_schedules(p, cond)
    if schedules is None:
        p.comment(MADE_BY_ANOTHER)
        return None
    seen, job.seen, size = job.seen, None, size_of(z)
    crop = Crop(0, 0, size, size)
    if not job.words:
        seen = None
    elif seen is None:
        dummy = z.new_zeros(len(z), 5, 1, 1) if image_conditioning is None else image_conditioning
        with host().without_control(p):  # its hints have the size of the picture
            maps = gather_from_latent(z, cond, schedules, partial(resized_conditioning, dummy), facts.window, facts.multiple)
        seen = seen_words(maps)
    elif getattr(p, "truncate_x", 0) or getattr(p, "truncate_y", 0):
        whole = Size(p.height // FACTOR, p.width // FACTOR)
        top, left = hires_cut_of(p, whole)
        crop = Crop(top // 2, left // 2, size, whole)
    if seen is not None and not seen.words:
        p.comment("APT: the model's cross-attention could not be seen, so every window keeps the whole prompt.")
        seen = None
    if seen is None and not job.request.options.parts():
        return None

    def on_windows(windows: list[Window], texts: list[list[str]]) -> None:
        for picture, of_picture in enumerate(texts):
            job.labels[p.iteration, picture] = (windows, of_picture)

    return Words(seen, cond, schedules, crop, job.encoded, on_windows)


def draw_words(p: Any, picture: Image.Image) -> None:
    """A picture of the job is finished: draw its windows and their words over a copy, if the user asked for it."""
    job = job_of(p)
    labels = job.labels.get((p.iteration, p.batch_index)) if job is not None else None
    if job is None or labels is None or not job.request.draw_words:
        return
    drawn = draw_labels(picture, *labels)
    info = infotext_of(p, p.batch_index)
    if p.save_samples():
        save_beside(p, drawn, p.batch_index, info, "-apt-words")
    job.drawn.append((drawn, info))


def show_drawn(p: Any, processed: Any) -> None:
    """Put the pictures of windows and words behind the job's own."""
    job = job_of(p)
    for drawn, info in job.drawn if job is not None else ():
        processed.images.append(drawn)
        processed.infotexts.append(info)
