"""Stand-ins for a diffusion model: what they take is known, so whatever else takes time or memory is the engine's."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.types import ModelFacts, Size
from apt_ext.demo.model import alphas_cumprod

__all__ = ["StandIn", "stable_diffusion"]


class StandIn:
    """A k-diffusion denoiser that hardly works, (B, C, H, W) -> (B, C, H, W): it scales its input and counts.

    Attributes:
        seconds: spent inside it. `rows`: samples that it was given. `calls`: how often it was called.
        first: `time.perf_counter()` at its first call, where a phase's setup ends.
    """

    def __init__(self) -> None:
        self.seconds, self.rows, self.calls, self.first = 0.0, 0, 0, 0.0

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """The estimate of unit-variance Gaussian latents, x / (1 + sigma^2): finite at every noise level."""
        started = time.perf_counter()
        self.first = self.first or started
        out = x / (1 + sigma.to(x.dtype).square()).view(-1, 1, 1, 1)
        self.rows += x.shape[0]
        self.calls += 1
        self.seconds += time.perf_counter() - started
        return out


def stable_diffusion(window: int) -> tuple[ModelFacts, Tensor]:
    """The facts and the (1000,) ascending noise levels of a Stable Diffusion model with windows of `window` latent pixels a side; SDXL's are the same."""
    bars = alphas_cumprod()
    sigmas = ((1 - bars) / bars).sqrt()
    return ModelFacts(Size(window, window), 8, float(sigmas[-1]), discrete_timestep(sigmas)), sigmas
