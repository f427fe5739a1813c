"""Runs of k-diffusion's samplers with the skip residual in them, and the chain of single steps that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apt_ext.core.clock import StepClock, sampler_calls, step_calls
from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.residual import PhaseDenoiser, StepMixer
from apt_ext.core.weights import PathWeights, cosine_weights
from tests.conftest import k_sampling
from tests.core.sampler_probe import SigmaNoise, run

TABLE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
LEVELS = ((1 - TABLE) / TABLE).sqrt()
TIMESTEP = discrete_timestep(LEVELS)
SHAPE = (2, 3, 5, 4)


def karras(steps: int) -> Tensor:
    return torch.cat([torch.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), steps, dtype=torch.float64) ** 7, torch.zeros(1, dtype=torch.float64)])


LISTS: dict[str, Tensor] = {
    "to 0": karras(12),
    "DDIM, to 0.029": torch.cat([LEVELS[torch.arange(901, 0, -100)], LEVELS[:1]]),
    "from the middle to 0": karras(20)[8:],
    "from the middle to 0.029": LEVELS[[401, 301, 201, 101, 1, 0]],
    "two steps to 0": torch.tensor([3.0, 0.9, 0.0], dtype=torch.float64),
    "one step to 1": torch.tensor([3.0, 1.0], dtype=torch.float64),
}


def sampler_of(name: str) -> Callable[..., Tensor]:
    sampler: Callable[..., Tensor] = getattr(k_sampling(), f"sample_{name}")
    return sampler


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z_UP, NOISE = draw(1), draw(2)


def toy(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that is nonlinear, depends on the noise level and couples pixels and channels."""
    s = sigma[:, None, None, None]
    return x / (1 + s**2) + torch.tanh(x.roll(1, -1) + 0.5 * x.roll(1, 1)) * s / (1 + s)


def weights(sigma: float) -> PathWeights:
    return cosine_weights(TIMESTEP(sigma))


def mix(x: Tensor, sigma: float) -> Tensor:
    """The skip residual by the book, out of place."""
    return torch.lerp(x, Z_UP + sigma * NOISE, weights(sigma).c1)


class Run:
    """A sampling run with the skip residual mixed into the sampler's own tensor.

    Attributes:
        seen: what the model got in each call. `result`: what the sampler returned. `mixes`: the levels at which the residual was mixed in.
    """

    def __init__(self, name: str, sigmas: Tensor, x: Tensor | None = None, calls: int | None = None, residual: bool = True, **options: float):
        self.seen: list[Tensor] = []
        self.mixes: list[float] = []
        self.clock = StepClock(sigmas.tolist(), step_calls(sigmas.tolist(), sampler_calls(name) if calls is None else calls))

        def counted(sigma: float) -> PathWeights:
            self.mixes.append(sigma)
            return weights(sigma)

        def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            self.seen.append(x.clone())
            return toy(x, sigma)

        phase = PhaseDenoiser(model, StepMixer(self.clock, counted, (Z_UP, NOISE) if residual else None))
        start = Z_UP + sigmas[0] * NOISE + draw(3) if x is None else x
        self.start = start.clone()
        self.result = run(sampler_of(name), phase, start, sigmas, SigmaNoise(SHAPE), **options)


def chain(name: str, x: Tensor, sigmas: Tensor) -> Tensor:
    """One-step runs of the same sampler, with the mix between them."""
    for i in range(len(sigmas) - 1):
        x = run(sampler_of(name), toy, mix(x, float(sigmas[i])), sigmas[i : i + 2], SigmaNoise(SHAPE))
    return x


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
