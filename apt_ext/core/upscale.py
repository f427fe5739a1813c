"""A phase, and the run of phases: upsample, match, add noise, sample with the fused denoiser, re-anchor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.clock import Clock, LevelClock, StepClock
from apt_ext.core.conditioning import Condition, condition_views
from apt_ext.core.dilated import DilatedGrid, dilated_grid
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.hold import Hold, hold_weight
from apt_ext.core.interaction import draw_permutations
from apt_ext.core.phases import Phase, Size
from apt_ext.core.residual import Denoiser, PhaseDenoiser
from apt_ext.core.schedule import PathWeights, auto_gamma, cosine_weights, scale_aware_sigmas, shortcut_sigmas, unscaled_sigma
from apt_ext.core.statistics import match_statistics, reanchor, statistics_shift, widen
from apt_ext.core.windows import draw_windows
from apt_ext.options import Options, blur_of, has_residual, reanchors

__all__ = [
    "ModelFacts",
    "PhaseReport",
    "PhaseStart",
    "Sampler",
    "enlarge",
    "finish_phase",
    "phase_denoiser",
    "phase_fused",
    "phase_grid",
    "phase_hold",
    "phase_residual",
    "phase_starts",
    "phase_weights",
    "start_phase",
    "upscale",
]


class ModelFacts(NamedTuple):
    """What the engine has to know of a model.

    Attributes:
        window: (rows, columns) of its native size, in latent pixels.
        multiple: its inputs' sides have to be multiples of this.
        sigma_max: its largest noise level.
        timestep: sigma -> its own timestep, 0 to 1000.
    """

    window: Size
    multiple: int
    sigma_max: float
    timestep: Callable[[float], float]


class Sampler(Protocol):
    """A sampler of k-diffusion's, with everything but these arguments bound."""

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], callback: Callable[[dict[str, Any]], None]) -> Tensor:
        """(B, C, H, W) noisy latents at sigmas[0] -> (B, C, H, W) at sigmas[-1]. May write into x."""
        ...


class PhaseStart(NamedTuple):
    """Where a phase begins: its clean latent (B, C, H, W), the exponent in force, the noise levels to sample at, and the statistics
    of the enlarged latent before and after matching (`statistics_shift`)."""

    z_up: Tensor
    gamma: float
    sigmas: Tensor
    before: dict[str, float]
    after: dict[str, float]


class PhaseReport(NamedTuple):
    """A finished phase: `latent` (B, C, H, W), how it began, and how many views the model evaluated."""

    phase: Phase
    latent: Tensor
    start: PhaseStart
    evaluations: int


def enlarge(z: Tensor, size: Size) -> Tensor:
    """Bicubic upsampling of a latent to (rows, columns), as DemoFusion does it (a = -0.75, no anti-aliasing), in float32 at least."""
    return F.interpolate(widen(z), size=size, mode="bicubic").to(z.dtype)


def start_phase(z_up: Tensor, reference: Tensor, phase: Phase, options: Options, sigmas: Tensor, model: ModelFacts) -> PhaseStart:
    """Match an enlarged latent to the base latent and set the phase's noise levels.

    Args:
        z_up: (B, C, H, W) at the phase's size. `reference`: (B, C, h, w), the base latent.
        sigmas: (N + 1,) of the whole unchanged schedule.

    Returns:
        The clean latent, the exponent and the noise levels that the phase starts with.

    Raises:
        ValueError: where the exponent is to be measured on more than one picture: each would change the others' noise levels.
    """
    if options.gamma == "auto" and z_up.shape[0] > 1:
        raise ValueError(f"gamma 'auto' is measured on one picture at a time, not on a batch of {z_up.shape[0]}; run them one by one or give a number")
    matched = match_statistics(z_up, reference, options.matching)
    gamma = auto_gamma(matched, reference, model.window, phase.scale) if isinstance(options.gamma, str) else options.gamma
    levels = scale_aware_sigmas(shortcut_sigmas(sigmas, options.shortcut), phase.scale, gamma, model.sigma_max)
    before = statistics_shift(z_up, reference)
    return PhaseStart(matched, gamma, levels, before, statistics_shift(matched, reference) if options.matching else before)


def phase_starts(phase: Phase, options: Options, model: ModelFacts, seed: int) -> dict[str, Any]:
    """Where a phase's local windows stand: the arguments of `draw_starts` and `draw_windows`, besides the step. Each phase jitters by itself."""
    where = {"overlap": options.overlap, "jitter": options.jitter, "border": options.border}
    return {"size": phase.size, "window": model.window, "seed": seed * 4096 + phase.number, **where}


def phase_grid(phase: Phase, options: Options, model: ModelFacts) -> DilatedGrid | None:
    """The phase's dilated views; None where the method has none."""
    return None if options.method == "multidiffusion" else dilated_grid(phase.size, phase.dilation, options.fill, model.multiple)


def phase_weights(phase: Phase, options: Options, model: ModelFacts, gamma: float) -> Callable[[float], PathWeights]:
    """sigma' of the phase -> c1, c2, c3, taken at the noise level before Scale-aware Scheduling."""

    def weights(sigma: float) -> PathWeights:
        t = model.timestep(unscaled_sigma(sigma, phase.scale, gamma, model.sigma_max))
        return cosine_weights(t, (options.residual, options.dilated, options.sharpen))

    return weights


def phase_fused(
    denoiser: Denoiser,
    gamma: float,
    phase: Phase,
    options: Options,
    model: ModelFacts,
    *,
    step: Callable[[], int],
    seed: int,
    condition: Condition = condition_views,
    on_views: Callable[[int], None],
) -> FusedDenoiser:
    """The fused denoiser of one phase, for hosts that put guidance or their own bookkeeping between it and the sampler.

    Args:
        denoiser: k-diffusion's signature.
        gamma: the exponent in force, `PhaseStart.gamma`.
        step: tells the number of the current step, as a `StepClock` counts it.
        seed: of the jitter and the window interaction.
        on_views: told the number of views after each model call; may raise to interrupt.
    """

    def permutations(number: int) -> Callable[[slice, tuple[int, ...]], Tensor]:
        generator = torch.Generator().manual_seed((seed * 4096 + phase.number) * 65536 + number)

        def draw(views: slice, shape: tuple[int, ...]) -> Tensor:
            # One exchange for all samples: prompt and negative prompt must see the same, and a picture the same as if it were alone.
            count = views.stop - views.start
            return draw_permutations(count, (1, *shape[1:]), generator).expand(count, *shape)

        return draw

    return FusedDenoiser(
        denoiser,
        windows=partial(draw_windows, **phase_starts(phase, options, model, seed)),
        grid=phase_grid(phase, options, model),
        weights=phase_weights(phase, options, model, gamma),
        step=step,
        blur=blur_of(options),
        tolerance=options.tolerance,
        dilated_every=options.dilated_every,
        window_batch=options.window_batch,
        fill=options.fill,
        feather=options.feather,
        condition=condition,
        on_views=on_views,
        permutations=permutations if options.method == "accdiffusion" else None,
    )


def phase_residual(start: PhaseStart, noise: Tensor, options: Options) -> tuple[Tensor, Tensor] | None:
    """(z_up, noise) of a phase's skip residual, where it has one."""
    return (start.z_up, noise) if has_residual(options) else None


def phase_hold(start: PhaseStart, options: Options, resolved: Size, free: Tensor | None = None) -> Hold | None:
    """The low-pass guidance of a phase, where it has one.

    Args:
        resolved: (rows, columns) of the latent that z_up was enlarged from: what it really shows, so how wide the low-pass is.
        free: see `Hold`.
    """
    if options.hold == 0:
        return None
    rows, columns = (options.hold_width * up / own for up, own in zip(start.z_up.shape[-2:], resolved, strict=True))
    return Hold(start.z_up, (rows, columns), hold_weight(options.hold, float(start.sigmas[0]), options.hold_until), free)


def phase_denoiser(
    denoiser: Denoiser,
    start: PhaseStart,
    noise: Tensor,
    phase: Phase,
    options: Options,
    model: ModelFacts,
    *,
    evaluations: int | None,
    seed: int,
    resolved: Size,
    condition: Condition = condition_views,
    on_views: Callable[[int], None],
) -> PhaseDenoiser:
    """The model to give to a sampler for one phase.

    Args:
        denoiser: k-diffusion's signature, guidance included.
        noise: (B, C, H, W), unit variance: the phase's starting noise.
        evaluations: model calls per step, from `evaluations_per_step`; None for a sampler that chooses its own noise levels.
        resolved: see `phase_hold`.
        seed, condition, on_views: as in `phase_fused`.

    Returns:
        A denoiser for one run of the sampler over `start.sigmas`; its `clock.finish()` tells whether all calls were made.
    """
    levels = start.sigmas.tolist()
    clock: Clock = LevelClock(levels) if evaluations is None else StepClock(levels, evaluations)
    fused = phase_fused(denoiser, start.gamma, phase, options, model, step=lambda: clock.step, seed=seed, condition=condition, on_views=on_views)
    return PhaseDenoiser(fused, clock, fused.weights, phase_residual(start, noise, options), phase_hold(start, options, resolved))


def finish_phase(z: Tensor, reference: Tensor, options: Options) -> Tensor:
    """Re-anchor a finished latent where the options say so."""
    return reanchor(z, reference) if reanchors(options) else z


def upscale(
    denoiser: Denoiser,
    z: Tensor,
    reference: Tensor,
    phases: Sequence[Phase],
    options: Options,
    model: ModelFacts,
    *,
    sampler: Callable[[int], Sampler],
    evaluations: int | None,
    sigmas: Tensor,
    noise: Callable[[Phase, tuple[int, ...]], Tensor],
    seed: int,
    extra: dict[str, Any] | None = None,
    condition: Condition = condition_views,
    upsample: Callable[[Tensor, Size], Tensor] = enlarge,
    on_phase: Callable[[Phase, PhaseStart], None] | None = None,
    on_step: Callable[[dict[str, Any]], None] = lambda info: None,
    on_views: Callable[[int], None] = lambda count: None,
    on_finished: Callable[[PhaseReport], None] | None = None,
) -> Tensor:
    """Take clean latents through all phases.

    Args:
        denoiser: k-diffusion's signature, guidance included.
        z: (B, C, h, w) clean latents to start from. `reference`: (B, C, h', w') the base latents of the same pictures.
        phases: from `plan_phases`.
        sampler: phase number -> a k-diffusion sampler with its noise source bound; `evaluations`, its model calls per step, None for one that
            chooses its own noise levels.
        sigmas: (N + 1,) the whole schedule, descending.
        noise: phase, shape -> the phase's starting noise, unit variance.
        seed: of everything that the engine itself draws.
        extra: the model's other arguments.
        upsample: (latent, size) -> the latent at the next phase's size: `enlarge`, or by way of the picture's pixels.
        on_phase, on_step, on_views, on_finished: told of a phase's start, k-diffusion's callback of each step, views done after each
            model call, and a phase's end. Any of them may raise to stop; finished phases have been reported by then.

    Returns:
        (B, C, H, W) at the last phase's size.

    Raises:
        ValueError: see `start_phase`. RuntimeError: where the sampler does not call the model as `evaluations` says.
    """
    for phase in phases:
        resolved = (z.shape[-2], z.shape[-1])
        start = start_phase(upsample(z, phase.size), reference, phase, options, sigmas, model)
        if on_phase:
            on_phase(phase, start)
        n = noise(phase, tuple(start.z_up.shape)).to(start.z_up)
        done = 0

        def count(views: int) -> None:
            nonlocal done
            done += views
            on_views(views)

        model_of_phase = phase_denoiser(
            denoiser, start, n, phase, options, model, evaluations=evaluations, seed=seed, resolved=resolved, condition=condition, on_views=count
        )
        x = start.z_up + start.sigmas[0] * n
        x = sampler(phase.number)(model_of_phase, x, start.sigmas, extra_args=extra or {}, callback=on_step)
        model_of_phase.clock.finish()
        # k-diffusion's samplers go over to the sigmas' precision; the latent keeps its own between the phases.
        z = finish_phase(x, reference, options).to(start.z_up.dtype)
        if on_finished:
            on_finished(PhaseReport(phase, z, start, done))
    return z
