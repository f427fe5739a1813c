"""One upscaling job on the embedded model: the core, fed with a picture and k-diffusion's samplers, as a host would feed it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from apt_ext.core.clock import FREE_SAMPLERS, check_steps, sampler_calls, step_calls
from apt_ext.core.colour import fix_colour
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.phases import Phase, base_size
from apt_ext.core.plan import PhaseSetup, Plan, make_plan
from apt_ext.core.types import ModelFacts, Size, size_of
from apt_ext.core.upscale import PhaseStart, enlarge, sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.model import NATIVE, LeavesModel
from apt_ext.demo.pictures import to_picture, to_tensor
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.demo.upscalers import Enlarger, enlarger
from apt_ext.options import Options, Schedule, has_residual

__all__ = [
    "MAX_OUTPUT",
    "Job",
    "Outcome",
    "Shown",
    "Source",
    "check_output",
    "from_picture",
    "from_style",
    "peak_memory_mib",
    "plan_for",
    "plan_job",
    "run_job",
    "seconds_per_view",
    "show",
    "through_pixels",
]

MAX_OUTPUT = 8192


@dataclass(frozen=True)
class Job:
    """What is wanted, besides the picture. `scale` is the linear factor; guidance is left out below the noise level `guided_above`."""

    scale: float = 4.0
    options: Options = field(default_factory=Options)
    schedule: Schedule = field(default_factory=Schedule)
    guidance: float = 1.0
    style: str = "photo"
    seed: int = 1
    guided_above: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, (int, float)) and 1 < self.scale <= 16):
            raise ValueError(f"scale {self.scale!r} is out of range; use a number above 1 and up to 16")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} is out of range; use 0 to {2**32 - 1}")
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= 30):
            raise ValueError(f"guidance {self.guidance} is out of range; use 0 to 30")
        if not (math.isfinite(self.guided_above) and 0 <= self.guided_above <= 100):
            raise ValueError(f"guided above {self.guided_above} is out of range; use a noise level from 0 to 100")
        sampler_calls(self.schedule.sampler, has_residual(self.options))


def _stream(seed: int, kind: int, number: int = 0) -> int:
    """Seed of one of a job's noise streams. Starting noise and a sampler's own noise must never be drawn from equal seeds."""
    return (seed * 4 + kind) * 4096 + number


BASE_NOISE, BASE_SAMPLER, PHASE_NOISE, PHASE_SAMPLER = range(4)


@dataclass(frozen=True)
class Source:
    """Where a job starts.

    Attributes:
        latent: (1, 4, h, w), clean. `base`: the base latent.
        pixels: (width, height) of the picture that they stand for.
        picture: (1, 3, 4h, 4w) in -1..1, that picture, its last column and row repeated up to whole latent pixels.
    """

    latent: Tensor
    base: Tensor
    pixels: tuple[int, int]
    picture: Tensor

    @property
    def covered(self) -> tuple[int, int]:
        """(width, height) in pixels that the latent covers."""
        return self.picture.shape[-1], self.picture.shape[-2]


class Shown(NamedTuple):
    """How a job shows its progress: `title` before each phase's bar, none where `quiet`; or on `bar`, which counts several jobs and is left open."""

    title: str = ""
    quiet: bool = False
    bar: Any = None


@dataclass
class Outcome:
    """A finished job: its latent, one record per phase, its seconds, and how many views each of its processes evaluated."""

    latent: Tensor
    phases: list[dict[str, Any]]
    seconds: float
    by_rank: list[int]


def from_picture(model: LeavesModel, image: Image.Image) -> Source:
    """Encode a picture, and its base: the picture itself, or its small version where it is much larger than the model's native size."""
    own = to_tensor(image)
    picture = F.pad(own, (0, -own.shape[-1] % FACTOR, 0, -own.shape[-2] % FACTOR), "replicate")
    z = model.encode(picture)
    size = size_of(z)
    base = base_size(size, model.facts.window)
    small = z if base == size else model.encode(to_tensor(image.resize((base[1] * FACTOR, base[0] * FACTOR), Image.Resampling.LANCZOS)))
    return Source(z, small, image.size, picture)


def from_style(model: LeavesModel, job: Job, steps: int = 30, size: tuple[int, int] = (16, 16)) -> Source:
    """Let the model make a picture of its own in the job's style, (rows, columns) in latent pixels."""
    generator = torch.Generator().manual_seed(_stream(job.seed, BASE_NOISE))
    sigmas = make_sigmas(job.schedule.spacing, steps, model.sigmas)
    x = torch.randn((1, 4, *size), generator=generator) * sigmas[0]
    style = torch.tensor([model.style_index(job.style)], device=model.device)
    with torch.no_grad():
        made = make_sampler(job.schedule.sampler, [_stream(job.seed, BASE_SAMPLER)])(
            model.denoiser(job.guidance), x.to(model.device), sigmas.to(model.device), extra_args={"style": style}, callback=lambda info: None
        )
    z = next(model.ranks.map(lambda latent: latent, [made]))  # all go on with the first one's
    return Source(z, z, (size[1] * FACTOR, size[0] * FACTOR), model.decode(z).cpu())


def check_output(pixels: tuple[int, int], scale: float, most: int = MAX_OUTPUT) -> None:
    """Make sure that a picture of (width, height) pixels does not become too large.

    Raises:
        ValueError: where it would, with the scale that still fits.
    """
    width, height = (round(side * scale) for side in pixels)
    if max(width, height) > most:
        fits = math.floor(100 * most / max(pixels)) / 100
        remedy = f"use a scale up to {fits:g}" if fits > 1 else f"shrink the picture to less than {most} pixels a side"
        raise ValueError(f"scale {scale:g} would make {width} x {height} pixels, more than {most} a side; {remedy}")


def plan_for(facts: ModelFacts, sigmas: Tensor, size: tuple[int, int], job: Job) -> Plan:
    """The plan of a job on any model.

    Args:
        facts: of the model.
        sigmas: its ascending noise levels.
        size: (rows, columns) of the picture in latent pixels.

    Raises:
        ValueError: for phases that do not fit, or a sampler that needs more steps.
    """
    own = job.schedule
    target = (math.ceil(size[0] * job.scale - 1e-6), math.ceil(size[1] * job.scale - 1e-6))
    levels = shortcut_sigmas(make_sigmas(own.spacing, own.steps, sigmas), own.strength)
    calls = step_calls(levels.tolist(), sampler_calls(own.sampler, has_residual(job.options)))
    plan = make_plan(size, target, job.options, facts, levels, calls, job.seed)
    check_steps(own.sampler, plan.steps)
    return plan


def plan_job(model: LeavesModel, source: Source, job: Job) -> Plan:
    """`plan_for` a picture on the embedded model."""
    check_output(source.pixels, job.scale)
    return plan_for(model.facts, model.sigmas, size_of(source.latent), job)


def seconds_per_view(model: LeavesModel, job: Job) -> float:
    """How long this machine takes for one window evaluation, from a single timed call."""
    denoiser, n = model.denoiser(job.guidance), job.options.window_batch
    x, sigma, style = torch.zeros((n, 4, *NATIVE), device=model.device), torch.ones(n, device=model.device), torch.zeros(n, device=model.device)
    with torch.no_grad():
        for _ in range(2):  # the first call warms up
            started = time.perf_counter()
            float(denoiser(x, sigma, style=style.long()).sum())
    return (time.perf_counter() - started) / n


def through_pixels(model: LeavesModel, source: Source, larger: Enlarger | None) -> Callable[[Tensor, Size], Tensor]:
    """How a latent is enlarged before a phase: the pixels of the picture that it stands for are, and are encoded, or, without `larger`, the latent itself.

    The first phase takes the source's own pixels, which no decoder has softened.
    """
    if larger is None:
        return enlarge

    def upsample(z: Tensor, size: Size) -> Tensor:
        own = source.picture if z is source.latent else model.decode(z)
        pictures = [larger(to_picture(picture), (size[1] * FACTOR, size[0] * FACTOR)) for picture in own]
        return model.encode(torch.cat([to_tensor(picture) for picture in pictures])).to(z)

    return upsample


def show(model: LeavesModel, source: Source, latent: Tensor, scale: float, colour_fix: float = 0.0) -> Image.Image:
    """Decode a latent of the source's picture at `scale` times its size, to exactly that many pixels. `colour_fix`: see `fix_colour`."""
    image = to_picture(fix_colour(model.decode(latent), source.picture, colour_fix)[0])
    size = (round(source.pixels[0] * scale), round(source.pixels[1] * scale))
    box = (image.width * source.pixels[0] / source.covered[0], image.height * source.pixels[1] / source.covered[1])
    return image if image.size == size and box == image.size else image.resize(size, Image.Resampling.BICUBIC, (0, 0, *box))


def run_job(
    model: LeavesModel,
    source: Source,
    job: Job,
    *,
    shown: Shown | None = None,
    on_finished: Callable[[Phase, Tensor, int], None] | None = None,
) -> Outcome:
    """Upscale a source.

    Args:
        shown: the progress bars; none when left out.
        on_finished: told each finished phase, its latent and how many phases there are; it may save the picture as it stands.
    """
    upsample = through_pixels(model, source, enlarger(job.options.upscaler, model.device, model.ranks.map))
    plan = plan_job(model, source, job)
    bars = shown or Shown(quiet=True)
    own: tqdm[Any] | None = None
    records: list[dict[str, Any]] = []
    views, own_views, started = 0, 0, time.perf_counter()
    phase_started = started

    def on_start(setup: PhaseSetup, start: PhaseStart) -> None:
        nonlocal own, phase_started, views
        phase_started, views, phase = time.perf_counter(), 0, setup.phase
        if bars.bar is None:
            label = f"{bars.title}phase {phase.number}/{len(plan.setups)} {phase.size.columns * FACTOR}x{phase.size.rows * FACTOR}"
            own = tqdm(total=sum(plan.totals[phase.number - 1]), desc=label, unit="window", disable=bars.quiet, mininterval=0.3)

    def on_views(count: int) -> None:
        nonlocal views
        views += count
        bar = own if bars.bar is None else bars.bar
        if bar is not None:
            bar.update(count)

    def finished(setup: PhaseSetup, start: PhaseStart, latent: Tensor) -> None:
        model.ranks.check_alike(latent)
        if own is not None:
            own.close()
        phase = setup.phase
        records.append(
            {
                "size": [phase.size.columns * FACTOR, phase.size.rows * FACTOR],
                "scale": round(phase.scale, 4),
                "dilation": list(phase.dilation),
                "steps": plan.steps,
                "window_evaluations": views,
                "seconds": round(time.perf_counter() - phase_started, 2),
                "statistics_shift": {"enlarged": start.before, "matched": start.after},
            }
        )
        if on_finished:
            on_finished(phase, latent, len(plan.setups))

    def noise(phase: Phase, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(_stream(job.seed, PHASE_NOISE, phase.number)))

    guided = model.denoiser(job.guidance, job.guided_above)

    def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        nonlocal own_views
        own_views += x.shape[0]
        return guided(x, sigma, **extra)

    name = job.schedule.sampler
    sample = sample_with(
        ViewCalls(denoiser, job.options.window_batch, on_views=on_views, deal=model.ranks.map),
        lambda phase: make_sampler(name, [_stream(job.seed, PHASE_SAMPLER, phase.number)]),
        noise,
        model_calls=None if name in FREE_SAMPLERS else plan.calls,
        extra={"style": torch.tensor([model.style_index(job.style)], device=model.device)},
    )
    try:
        with torch.no_grad():
            on_device = dataclasses.replace(plan, sigmas=plan.sigmas.to(model.device))
            z = upscale(source.latent, source.base, on_device, sample, upsample=upsample, on_start=on_start, on_finished=finished)
    finally:
        if own is not None:
            own.close()
    return Outcome(z, records, time.perf_counter() - started, model.ranks.numbers(own_views))


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest memory so far in MiB: a GPU's allocations, or this process's resident memory; None on a system that does not keep count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
