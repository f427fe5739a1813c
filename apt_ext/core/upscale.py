"""The loop over the phases: enlarge, match, sample with the fused denoiser, re-anchor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from apt_ext.core.borders import NOWHERE, interpolate
from apt_ext.core.clock import Clock, LevelClock, StepClock
from apt_ext.core.phases import Phase
from apt_ext.core.plan import PhaseSetup, Plan
from apt_ext.core.residual import PhaseDenoiser, Residual, StepMixer
from apt_ext.core.statistics import at_least_float32, match_statistics, reanchor, statistics_shift
from apt_ext.core.types import Around, Sampler, Size
from apt_ext.core.views import ViewCalls
from apt_ext.options import has_residual, reanchors

__all__ = ["PhaseStart", "Sample", "enlarge", "phase_residual", "sample_with", "start_phase", "upscale"]


class PhaseStart(NamedTuple):
    """Where a phase begins.

    Attributes:
        z_up: (B, C, H, W), its clean latent, matched.
        sigmas: (N + 1,), its noise levels.
        before, after: statistics of the enlarged latent before and after matching (`statistics_shift`).
    """

    z_up: Tensor
    sigmas: Tensor
    before: dict[str, float]
    after: dict[str, float]


Sample = Callable[[PhaseSetup, PhaseStart], Tensor]
"""What runs a sampler through a phase: (B, C, H, W) clean latents at the phase's size. It may raise to stop."""


def enlarge(z: Tensor, size: tuple[int, int], around: Around = NOWHERE) -> Tensor:
    """Bicubic upsampling of a latent to (rows, columns), as DemoFusion does it (a = -0.75, no anti-aliasing), in float32 at least.

    Args:
        around: the axes along which it is seamless.
    """
    return interpolate(at_least_float32(z), size, around).to(z.dtype)


def start_phase(z_up: Tensor, base: Tensor, setup: PhaseSetup, sigmas: Tensor) -> PhaseStart:
    """Match an enlarged latent to the base latent and set the phase's noise levels.

    Args:
        z_up: (B, C, H, W) at the phase's size.
        base: (B, C, h, w), the base latent.
        sigmas: (N + 1,) of the plan.
    """
    matching = setup.options.matching
    matched, before = match_statistics(z_up, base, matching), statistics_shift(z_up, base)
    return PhaseStart(matched, setup.levels(sigmas), before, statistics_shift(matched, base) if matching else before)


def phase_residual(setup: PhaseSetup, start: PhaseStart, noise: Tensor) -> Residual | None:
    """A phase's skip residual, where it has one. `noise`: (B, C, H, W), unit variance, that the phase begins with."""
    return (start.z_up, noise) if has_residual(setup.options) else None


def _ignore(*_: Any) -> None:
    pass


def sample_with(
    calls: ViewCalls,
    sampler: Callable[[Phase], Sampler],
    noise: Callable[[Phase, tuple[int, ...]], Tensor],
    *,
    model_calls: Sequence[int] | None,
    extra: dict[str, Any] | None = None,
    on_step: Callable[[dict[str, Any]], None] = _ignore,
) -> Sample:
    """How k-diffusion's samplers run a phase.

    Args:
        calls: the model, guidance included, and how views are evaluated.
        sampler: a phase -> a sampler with its noise source bound.
        noise: phase, shape -> the phase's starting noise, unit variance.
        model_calls: of each step, `Plan.calls`; None for a sampler that chooses its own noise levels.
        extra: the model's other arguments.
        on_step: k-diffusion's callback of each step; may raise to stop.

    Returns:
        For `upscale`. It raises RuntimeError where the sampler does not call the model as `model_calls` says.
    """

    def sample(setup: PhaseSetup, start: PhaseStart) -> Tensor:
        n = noise(setup.phase, tuple(start.z_up.shape)).to(start.z_up)
        levels = start.sigmas.tolist()
        clock: Clock = LevelClock(levels) if model_calls is None else StepClock(levels, model_calls)
        fused = setup.fuse(calls, lambda: clock.step)
        mixer = StepMixer(clock, setup.weights, phase_residual(setup, start, n))
        denoiser = PhaseDenoiser(fused, mixer)
        x = sampler(setup.phase)(denoiser, start.z_up + start.sigmas[0] * n, start.sigmas, extra_args=extra or {}, callback=on_step)
        clock.finish()
        return x

    return sample


def upscale(
    z: Tensor,
    base: Tensor,
    plan: Plan,
    sample: Sample,
    *,
    upsample: Callable[[Tensor, Size], Tensor] = enlarge,
    on_start: Callable[[PhaseSetup, PhaseStart], None] = _ignore,
    on_finished: Callable[[PhaseSetup, PhaseStart, Tensor], None] = _ignore,
) -> Tensor:
    """Take clean latents through all phases.

    Args:
        z: (B, C, h, w) clean latents to start from.
        base: (B, C, h', w') the base latents of the same pictures.
        plan: from `make_plan`.
        sample: runs a phase: `sample_with`, or a host's own.
        upsample: (latent, size) -> the latent at the next phase's size: `enlarge`, or by way of the picture's pixels.
        on_start: told of each phase's start. `on_finished`: and of its end, with its latent (B, C, H, W). Both may raise to stop; finished phases
            have been reported by then.

    Returns:
        (B, C, H, W) at the last phase's size.
    """
    for setup in plan.setups:
        start = start_phase(upsample(z, setup.phase.size), base, setup, plan.sigmas)
        on_start(setup, start)
        x = sample(setup, start)
        # Samplers go over to the sigmas' precision; the latent keeps its own between the phases.
        z = (reanchor(x, base) if reanchors(setup.options) else x).to(start.z_up.dtype)
        on_finished(setup, start, z)
    return z
