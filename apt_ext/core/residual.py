"""The skip residual, and the model that a sampler is given during a phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from apt_ext.core.clock import Clock
from apt_ext.core.hold import Hold
from apt_ext.core.schedule import PathWeights

__all__ = ["Denoiser", "PhaseDenoiser", "mix_residual"]


class Denoiser(Protocol):
    """k-diffusion's model: (B, C, H, W) noisy latents and (B,) sigmas to the (B, C, H, W) estimate of the clean ones."""

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W), (B,), the model's other arguments -> (B, C, H, W)."""
        ...


def mix_residual(x: Tensor, z_up: Tensor, noise: Tensor, sigma: float, c1: float) -> None:
    """x <- (1 - c1) x + c1 (z_up + sigma n), in place.

    Args:
        x: (B, C, H, W), the sampler's own tensor; nothing else lets the sampler see the mix.
        z_up, noise: the phase's starting latent and starting noise, shaped like x.
        sigma: noise level of x. `c1`: share of the residual, 0 to 1.

    Source: DemoFusion (Du et al., CVPR 2024), section 3.2, "Skip Residual".
    """
    if c1 > 0:
        x.lerp_((z_up + sigma * noise).to(x.dtype), c1)


class PhaseDenoiser:
    """What a sampler gets as its model during a phase: counts the steps, mixes the skip residual in once per step, and holds the estimate.

    Args:
        denoiser: the fused denoiser of the phase.
        clock: counts this run's model calls; share it with the denoiser's windows.
        weights: sigma -> the weights of the step, of which c1 is used.
        residual: (z_up, noise), or None for no skip residual.
        hold: low-pass guidance, or None.
    """

    def __init__(
        self, denoiser: Denoiser, clock: Clock, weights: Callable[[float], PathWeights], residual: tuple[Tensor, Tensor] | None, hold: Hold | None = None
    ):
        self.denoiser, self.clock, self.weights, self.residual, self.hold = denoiser, clock, weights, residual, hold

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W) the sampler's live tensor, changed at the first call of a step, and (B,) -> (B, C, H, W)."""
        level = float(sigma.max())
        if self.clock.tick(level) and self.residual is not None:
            mix_residual(x, *self.residual, level, self.weights(level).c1)
        estimate = self.denoiser(x, sigma, **extra)
        return estimate if self.hold is None else self.hold(estimate, level)
