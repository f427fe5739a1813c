"""One upscaling job on a model: the core, fed with a picture and k-diffusion's samplers, as a host would feed it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from apt_ext.core.call_levels import call_levels
from apt_ext.core.clock import FREE_SAMPLERS, check_steps, sampler_calls, step_calls
from apt_ext.core.colour import fix_colour
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.phases import Phase
from apt_ext.core.plan import PhaseSetup, Plan, make_plan, window_size
from apt_ext.core.types import ModelFacts, Size
from apt_ext.core.upscale import PhaseStart, enlarge, sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.core.windows import Window
from apt_ext.demo.masks import free_at, within
from apt_ext.demo.pictures import to_picture, to_tensor
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.demo.sources import PHASE_NOISE, PHASE_SAMPLER, start_size, stream
from apt_ext.demo.upscalers import Enlarger, enlarger
from apt_ext.demo.wanted import BaseJob, Model, Source
from apt_ext.options import has_residual

__all__ = [
    "MAX_OUTPUT",
    "Outcome",
    "Shown",
    "check_output",
    "peak_memory_mib",
    "plan_for",
    "plan_job",
    "plan_picture",
    "run_job",
    "seconds_per_view",
    "show",
    "through_pixels",
]

MAX_OUTPUT = 8192


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


def plan_for(facts: ModelFacts, sigmas: Tensor, size: tuple[int, int], job: BaseJob, start: tuple[int, int] | None = None) -> Plan:
    """The plan of a job on any model.

    Args:
        facts: of the model.
        sigmas: its ascending noise levels.
        size: (rows, columns) of the picture in latent pixels.
        start: of the latent that the first phase enlarges, where it is another.

    Raises:
        ValueError: for phases that do not fit, or a sampler that needs more steps.
    """
    own = job.schedule
    target = (math.ceil(size[0] * job.scale - 1e-6), math.ceil(size[1] * job.scale - 1e-6))
    levels = shortcut_sigmas(make_sigmas(own.spacing, own.steps, sigmas), own.strength)
    calls = step_calls(levels.tolist(), sampler_calls(own.sampler, has_residual(job.options)))
    at = None if own.sampler in FREE_SAMPLERS else lambda setup: call_levels(own.sampler, setup.levels(levels).tolist())
    plan = make_plan(start or size, target, job.options, facts, levels, calls, job.seed, levels=at)
    check_steps(own.sampler, plan.steps)
    return plan


def plan_picture(model: Model, pixels: tuple[int, int], job: BaseJob) -> Plan:
    """`plan_for` a picture of (width, height) on a model.

    Raises:
        ValueError: besides those of `plan_for`, where the result would be too large, or smaller than what the model looks at.
    """
    check_output(pixels, job.scale)
    size = Size(-(-pixels[1] // model.factor), -(-pixels[0] // model.factor))
    if model.smallest:
        _check_window(model, pixels, job)
    return plan_for(model.facts, model.sigmas, size, job, start_size(model, size, job.scale))


def _check_window(model: Model, pixels: tuple[int, int], job: BaseJob) -> None:
    window = [side * model.factor for side in reversed(window_size(job.options, model.facts))]
    sides = [round(side * job.scale) for side in pixels]
    if max(sides) < max(window) or min(sides) < min(window) / 2:
        needed = max(max(window) / max(pixels), min(window) / 2 / min(pixels))
        remedy = f"use a scale of at least {math.ceil(100 * needed) / 100:g}, or a model of a smaller window" if needed <= 16 else "use a larger picture"
        made = f"{pixels[0]} x {pixels[1]} pixels at scale {job.scale:g} make {sides[0]} x {sides[1]}"
        raise ValueError(f"{made}, and the model's window of {window[0]} x {window[1]} is larger; {remedy}")


def plan_job(model: Model, source: Source, job: BaseJob) -> Plan:
    """`plan_picture` of a source."""
    return plan_picture(model, source.pixels, job)


def seconds_per_view(model: Model, job: BaseJob, source: Source | None = None) -> float:
    """How long this machine takes for one window evaluation, from a single timed call."""
    made, n, window = model.conditioned(job, source)(None), job.options.window_batch, window_size(job.options, model.facts)
    x, sigma = torch.zeros((n, model.channels, *window), device=model.device), torch.ones(n, device=model.device)
    extra = made.condition(made.extra, ViewBatch(window, 1, (Window(0, 0, *window),) * n))
    with torch.no_grad():
        for _ in range(2):  # the first call warms up
            started = time.perf_counter()
            float(made.denoiser(x, sigma, **extra).sum())
    return (time.perf_counter() - started) / n


def through_pixels(model: Model, source: Source, larger: Enlarger | None) -> Callable[[Tensor, Size], Tensor]:
    """How a latent is enlarged before a phase: the pixels of the picture that it stands for are, and are encoded, or, without `larger`, the latent itself.

    The first phase takes the source's own pixels, which no decoder has softened.
    """
    if larger is None:
        return enlarge

    def upsample(z: Tensor, size: Size) -> Tensor:
        own = source.picture if z is source.latent else model.decode(z)
        pictures = [larger(to_picture(picture), (size[1] * model.factor, size[0] * model.factor)) for picture in own]
        return model.encode(torch.cat([to_tensor(picture) for picture in pictures])).to(z)

    return upsample


def show(model: Model, source: Source, latent: Tensor, scale: float, colour_fix: float = 0.0) -> Image.Image:
    """Decode a latent of the source's picture at `scale` times its size, to exactly that many pixels. `colour_fix`: see `fix_colour`."""
    image = to_picture(fix_colour(model.decode(latent), source.picture, colour_fix)[0])
    size = (round(source.pixels[0] * scale), round(source.pixels[1] * scale))
    box = (image.width * source.pixels[0] / source.covered[0], image.height * source.pixels[1] / source.covered[1])
    return image if image.size == size and box == image.size else image.resize(size, Image.Resampling.BICUBIC, (0, 0, *box))


def run_job(
    model: Model,
    source: Source,
    job: BaseJob,
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
            label = f"{bars.title}phase {phase.number}/{len(plan.setups)} {phase.size.columns * model.factor}x{phase.size.rows * model.factor}"
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
                "size": [phase.size.columns * model.factor, phase.size.rows * model.factor],
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
        return torch.randn(shape, generator=torch.Generator().manual_seed(stream(job.seed, PHASE_NOISE, phase.number)))

    name, conditioned = job.schedule.sampler, model.conditioned(job, source)

    def sample(setup: PhaseSetup, start: PhaseStart) -> Tensor:
        made = conditioned(setup)

        def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            nonlocal own_views
            own_views += x.shape[0] // len(start.z_up)
            return made.denoiser(x, sigma, **extra)

        free = None if source.mask is None else free_at(source.mask, setup.phase.size).to(start.z_up)
        return sample_with(
            ViewCalls(denoiser, job.options.window_batch, made.condition, on_views, model.ranks.map),
            lambda phase: within(make_sampler(name, [stream(job.seed, PHASE_SAMPLER, phase.number)]), free, start.z_up),
            noise,
            model_calls=None if name in FREE_SAMPLERS else plan.calls,
            extra=made.extra,
        )(setup, start)

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
