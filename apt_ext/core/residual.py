"""The skip residual, and the gate that it enters the sampler through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from apt_ext.core.clock import Clock
from apt_ext.core.types import Denoiser
from apt_ext.core.weights import PathWeights

__all__ = ["PhaseDenoiser", "StepMixer", "mix_residual"]

Residual = tuple[Tensor, Tensor]
"""(z_up, noise): the clean latent and the noise that a phase began with, shaped like the sampler's state."""


def mix_residual(x: Tensor, z_up: Tensor, noise: Tensor, sigma: float, c1: float) -> None:
    """x <- (1 - c1) x + c1 (z_up + sigma n), in place.

    Args:
        x: (B, C, H, W), the sampler's own tensor; nothing else lets the sampler see the mix.
        z_up, noise: the phase's starting latent and starting noise, shaped like x.
        sigma: noise level of x.
        c1: share of the residual, 0 to 1.

    Source: DemoFusion (Du et al., CVPR 2024), section 3.2, "Skip Residual".
    """
    if c1 > 0:
        x.lerp_((z_up + sigma * noise).to(x.dtype), c1)


def _unscaled(z_up: Tensor, noise: Tensor, sigma: float) -> Residual:
    return z_up, noise


class StepMixer:
    """Stands before every model call of a run: counts it, and at the first of a step mixes the skip residual in.

    Args:
        clock: of this run's model calls.
        weights: sigma -> the weights of the step, of which c1 is used.
        residual: what is mixed in, or None.
        scaled: the residual and sigma -> the residual in the sampler's own units; k-diffusion's when left out.
    """

    def __init__(
        self,
        clock: Clock,
        weights: Callable[[float], PathWeights],
        residual: Residual | None,
        scaled: Callable[[Tensor, Tensor, float], Residual] = _unscaled,
    ):
        self.clock, self.weights, self.residual, self.scaled = clock, weights, residual, scaled

    def begin(self, x: Tensor, sigma: float) -> None:
        """The model is about to be called at noise level `sigma` with the sampler's live tensor (B, C, H, W), which may be changed."""
        if self.clock.tick(sigma) and self.residual is not None:
            mix_residual(x, *self.scaled(*self.residual, sigma), sigma, self.weights(sigma).c1)


class PhaseDenoiser:
    """What a k-diffusion sampler gets as its model during a phase.

    Args:
        denoiser: the fused denoiser of the phase.
        mixer: the gate before it.
    """

    def __init__(self, denoiser: Denoiser, mixer: StepMixer):
        self.denoiser, self.mixer = denoiser, mixer

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W) the sampler's live tensor, changed at the first call of a step, and (B,) -> (B, C, H, W)."""
        self.mixer.begin(x, float(sigma.max()))
        return self.denoiser(x, sigma, **extra)
