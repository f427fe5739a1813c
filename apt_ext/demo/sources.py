"""Where a job starts: from a picture, or from a picture that the model makes by itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image

from apt_ext.core.phases import base_size
from apt_ext.core.types import Size
from apt_ext.demo.pictures import to_picture, to_tensor
from apt_ext.demo.samplers import HIGHEST, make_sampler, make_sigmas
from apt_ext.demo.upscalers import enlarger
from apt_ext.demo.wanted import BaseJob, Model, Source

__all__ = ["BASE_NOISE", "FIRST_STEPS", "PHASE_NOISE", "PHASE_SAMPLER", "from_picture", "from_words", "start_size", "stream"]


def stream(seed: int, kind: int, number: int = 0) -> int:
    """Seed of one of a job's noise streams. Starting noise and a sampler's own noise must never be drawn from equal seeds."""
    return (seed * 4 + kind) * 4096 + number


BASE_NOISE, BASE_SAMPLER, PHASE_NOISE, PHASE_SAMPLER = range(4)
FIRST_STEPS = 30


def start_size(model: Model, size: Size, scale: float) -> Size:
    """The latent size that a picture of `size` starts at: its own, or, where the model does not compose pictures that small, the native area."""
    area = size.rows * size.columns
    if area >= model.smallest:
        return size
    grown = min(scale, math.sqrt(model.facts.window.rows * model.facts.window.columns / area))
    return Size(*(min(round(side * grown), math.ceil(side * scale - 1e-6)) for side in size))


def from_picture(model: Model, image: Image.Image, job: BaseJob | None = None) -> Source:
    """Encode a picture, and its base: the picture itself, or its small version where it is much larger than the model's native size.

    A picture that is too small for the model is enlarged first, by the job's upscaler or, where that enlarges latents, by Lanczos.
    Without a job, a picture is taken as it is.
    """
    factor, own = model.factor, to_tensor(image)
    picture = F.pad(own, (0, -own.shape[-1] % factor, 0, -own.shape[-2] % factor), "replicate")
    size = Size(picture.shape[-2] // factor, picture.shape[-1] // factor)
    start = size if job is None else start_size(model, size, job.scale)
    if job is None or start == size:
        z = model.encode(picture)
    else:
        larger = enlarger(job.options.upscaler, model.device, model.ranks.map) or enlarger("lanczos", model.device)
        assert larger is not None
        z = model.encode(to_tensor(larger(to_picture(picture[0]), (start.columns * factor, start.rows * factor))))
    base = base_size(start, model.facts.window)
    small = z if base == start else model.encode(to_tensor(image.resize((base[1] * factor, base[0] * factor), Image.Resampling.LANCZOS)))
    return Source(z, small, image.size, picture)


def from_words(model: Model, job: BaseJob, steps: int = FIRST_STEPS, size: tuple[int, int] | None = None) -> Source:
    """Let the model make a picture of its own by the job's words, (rows, columns) in latent pixels, or of its own size."""
    size = size or model.first_size
    generator = torch.Generator().manual_seed(stream(job.seed, BASE_NOISE))
    # A picture that is made from nothing has to begin where nothing is left.
    spacing = job.schedule.spacing if model.facts.sigma_max <= HIGHEST else "normal"
    sigmas = make_sigmas(spacing, steps, model.sigmas)
    x = torch.randn((1, model.channels, *size), generator=generator) * sigmas[0]
    made = model.conditioned(job)(None)
    with torch.no_grad():
        z = make_sampler(job.schedule.sampler, [stream(job.seed, BASE_SAMPLER)])(
            made.denoiser, x.to(model.device), sigmas.to(model.device), extra_args=made.extra, callback=lambda info: None
        )
    z = next(model.ranks.map(lambda latent: latent, [z]))  # all go on with the first one's
    return Source(z, z, (size[1] * model.factor, size[0] * model.factor), model.decode(z).cpu())
