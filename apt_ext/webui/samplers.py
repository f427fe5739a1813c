"""Which of the host's samplers can carry patch fusion, how often they call their model, and the coordinates they work in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from apt_ext.core.evaluations import EVALUATIONS_PER_STEP, calls_per_step, check_steps
from apt_ext.core.residual import Denoiser

__all__ = ["Coordinates", "SigmaCoordinates", "TimestepCoordinates", "check_sampler", "coordinates_of", "model_calls", "sampler_key"]

# The host's own samplers beside k-diffusion's, with their model calls per step.
SIGMA_SAMPLERS = EVALUATIONS_PER_STEP | {"lcm": 1}
TIMESTEP_SAMPLERS = ("ddim", "ddim_cfgpp", "plms")
REFUSED = {
    "dpm_fast": "chooses its own noise levels, which the phases have to set",
    "dpm_adaptive": "chooses its own noise levels, which the phases have to set",
    "restart_sampler": "goes back to higher noise on a schedule of its own, which the phases have to set",
    "unipc": "corrects each step from a state that the skip residual cannot reach",
}
REMEDY = "use Euler a, DPM++ 2M, DDIM or another one"


def sampler_key(function: Any) -> str:
    """The name of a sampler's function, a string or a callable as the host keeps it, without "sample_"."""
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    return str(name).removeprefix("sample_")


def check_sampler(label: str, function: Any) -> None:
    """Make sure that a sampler can carry patch fusion.

    Raises:
        ValueError: where it cannot, or is not known.
    """
    key = sampler_key(function)
    if key in REFUSED:
        raise ValueError(f"sampler {label!r} {REFUSED[key]}; {REMEDY}")
    if key not in SIGMA_SAMPLERS and key not in TIMESTEP_SAMPLERS:
        raise ValueError(f"sampler {label!r} is not one that this version knows; {REMEDY}")


def model_calls(label: str, function: Any, sigmas: Sequence[float]) -> list[int]:
    """Model calls of every step of a run over these noise levels.

    Raises:
        ValueError: where the sampler needs more steps.
    """
    key, steps = sampler_key(function), len(sigmas) - 1
    if steps < 1:
        raise ValueError(f"sampler {label!r} gets no step to run; use more steps or a higher denoising strength")
    if key in TIMESTEP_SAMPLERS:
        return [2 if key == "plms" and step == 0 else 1 for step in range(steps)]
    if key != "lcm":
        check_steps(key, steps)
    return calls_per_step(sigmas, SIGMA_SAMPLERS[key])


class Coordinates(Protocol):
    """How a sampler writes noisy latents and noise levels, against k-diffusion's x = z + sigma n that the engine works in.

    Attributes:
        getter: the sampler's method that lays out its list (sigmas descending, timesteps ascending).
    """

    getter: str

    def levels(self, own: Tensor, total: int, last: int) -> Tensor:
        """The sampler's whole list -> (N + 1,) descending sigmas of the N steps that an image pass runs and of its end.

        `total` and `last` are what the host's `setup_img2img_steps` returns: steps of the whole schedule, and the number of the first one
        that is run, counted from the end.
        """
        ...

    def rescaled(self, own: Tensor, rescale: Callable[[Tensor], Tensor]) -> Tensor:
        """The sampler's list with another function of sigma applied."""
        ...

    def level(self, t: Tensor) -> float:
        """The sampler's (B,) noise levels or timesteps, all alike -> sigma."""
        ...

    def noised(self, z: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """A latent and its noise, scaled so that the sampler's state at sigma is their sum with sigma on the noise."""
        ...

    def estimate(self, engine: Denoiser, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """Call the engine for a sampler's x and t; returns what the sampler expects of its model."""
        ...

    def denoiser(self, model: Callable[..., Tensor]) -> Denoiser:
        """The sampler's model as k-diffusion's denoiser, for the engine."""
        ...


class SigmaCoordinates:
    """k-diffusion's own."""

    getter = "get_sigmas"

    def levels(self, own: Tensor, total: int, last: int) -> Tensor:
        """See `Coordinates`."""
        return own[total - last - 1 :]

    def rescaled(self, own: Tensor, rescale: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Coordinates`."""
        return rescale(own)

    def level(self, t: Tensor) -> float:
        """See `Coordinates`."""
        return float(t.max())

    def noised(self, z: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Coordinates`."""
        return z, noise

    def estimate(self, engine: Denoiser, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """See `Coordinates`."""
        return engine(x, t, **extra)

    def denoiser(self, model: Callable[..., Tensor]) -> Denoiser:
        """See `Coordinates`."""
        return model


class TimestepCoordinates:
    """The variance-preserving ones of DDIM and PLMS: y = x / sqrt(1 + sigma^2), the model is told the timestep and estimates the noise.

    Args:
        alphas_cumprod: (T,) the model's own; sigma^2 = (1 - a) / a.
    """

    getter = "get_timesteps"

    def __init__(self, alphas_cumprod: Tensor):
        alphas = alphas_cumprod.detach().cpu().double()  # some devices have no float64
        self.sigmas = ((1 - alphas) / alphas).sqrt()

    def levels(self, own: Tensor, total: int, last: int) -> Tensor:
        """See `Coordinates`. The host's DDIM and PLMS begin at the entry before the one that the noise was added for."""
        return self.sigmas[own[:last].flip(0).cpu()]

    def rescaled(self, own: Tensor, rescale: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Coordinates`; to the nearest timestep."""
        return torch.tensor([self.nearest(float(sigma)) for sigma in rescale(self.sigmas[own.cpu()])]).to(own)

    def level(self, t: Tensor) -> float:
        """See `Coordinates`."""
        return float(self.sigmas[int(t.max())])

    def nearest(self, sigma: float) -> int:
        """The timestep whose noise level is nearest in log sigma."""
        return int((self.sigmas.log() - math.log(max(sigma, 1e-12))).abs().argmin())

    def noised(self, z: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Coordinates`."""
        scale = (1 + sigma**2) ** -0.5
        return z * scale, noise * scale

    def estimate(self, engine: Denoiser, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """See `Coordinates`."""
        sigma = self.level(t)
        state = x * (1 + sigma**2) ** 0.5
        clean = engine(state, torch.full_like(t, sigma, dtype=torch.float32), timesteps=t, **extra)
        return (state - clean) / sigma

    def denoiser(self, model: Callable[..., Tensor]) -> Denoiser:
        """See `Coordinates`."""

        def denoise(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            level = float(sigma.max())
            timesteps = extra.pop("timesteps")
            return x - level * model(x * (1 + level**2) ** -0.5, timesteps, **extra)

        return denoise


def coordinates_of(function: Any, alphas_cumprod: Tensor) -> Coordinates:
    """The coordinates of a sampler that `check_sampler` let pass."""
    return TimestepCoordinates(alphas_cumprod) if sampler_key(function) in TIMESTEP_SAMPLERS else SigmaCoordinates()
