"""Which of the host's samplers can carry patch fusion, how often they call their model, and the coordinates they work in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from apt_ext.core.clock import CALLS_PER_STEP, FREE_SAMPLERS, Clock, LevelClock, StepClock, check_steps, step_calls
from apt_ext.core.types import Denoiser

__all__ = [
    "Coordinates",
    "SigmaCoordinates",
    "TimestepCoordinates",
    "check_sampler",
    "chooses_levels",
    "clock_of",
    "coordinates_of",
    "model_calls",
    "sampler_key",
]

# The host's own samplers beside k-diffusion's, with their model calls per step; of those that choose their own levels, the calls to expect.
SIGMA_SAMPLERS = CALLS_PER_STEP | {"lcm": 1} | FREE_SAMPLERS | {"restart_sampler": 2}
TIMESTEP_SAMPLERS = ("ddim", "ddim_cfgpp", "plms", "unipc")
FREE = {
    "dpm_fast": "chooses its own noise levels",
    "dpm_adaptive": "chooses its own noise levels",
    "restart_sampler": "goes back to higher noise by itself",
    "unipc": "corrects each step from a state of its own",
}
"""Samplers whose steps are not the phase's: what they do instead."""
UNIPC_ORDER = 3  # the host's default; it takes no fewer steps
REMEDY = "use Euler a, DPM++ 2M, DDIM or another one"


def sampler_key(function: Any) -> str:
    """The name of a sampler's function, a string or a callable as the host keeps it, without "sample_"."""
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    return str(name).removeprefix("sample_")


def check_sampler(label: str, function: Any, residual: bool) -> None:
    """Make sure that a sampler can carry patch fusion.

    Args:
        residual: whether the job mixes the skip residual into the sampler's state.

    Raises:
        ValueError: where it cannot, or is not known.
    """
    key = sampler_key(function)
    if key not in SIGMA_SAMPLERS and key not in TIMESTEP_SAMPLERS:
        raise ValueError(f"sampler {label!r} is not one that this version knows; {REMEDY}")
    if key in FREE and residual:
        raise ValueError(f"sampler {label!r} {FREE[key]}, where the skip residual cannot follow; turn the skip residual off, or {REMEDY}")


def chooses_levels(function: Any) -> bool:
    """Whether a sampler's steps are not the phase's, so that their number can only be estimated."""
    return sampler_key(function) in FREE


def model_calls(label: str, function: Any, sigmas: Sequence[float]) -> list[int]:
    """Model calls of every step of a run over these noise levels; those to expect, for samplers whose steps are not the phase's.

    Raises:
        ValueError: where the sampler needs more steps.
    """
    key, steps = sampler_key(function), len(sigmas) - 1
    least = {"unipc": UNIPC_ORDER, "dpm_fast": 2, "dpm_adaptive": 2}.get(key, 1)
    if steps < least:
        wanted = "no step to run" if least == 1 else f"{steps} steps to run, and needs {least}"
        raise ValueError(f"sampler {label!r} gets {wanted}; use more steps or a higher denoising strength")
    if key in TIMESTEP_SAMPLERS:
        return [2 if key == "plms" and step == 0 else 1 for step in range(steps)]
    if key in CALLS_PER_STEP:
        check_steps(key, steps)
    return step_calls(sigmas, SIGMA_SAMPLERS[key])


def clock_of(function: Any, sigmas: Sequence[float], calls: Sequence[int]) -> Clock:
    """What tells the step of a model call: for samplers whose steps are not the phase's, the noise level."""
    return LevelClock(sigmas) if chooses_levels(function) else StepClock(sigmas, calls)


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
        to_the_end: for UniPC, which takes a step below the list's last entry.
        whole: whether the host takes the nearest whole timestep where UniPC stands between two.
    """

    getter = "get_timesteps"

    def __init__(self, alphas_cumprod: Tensor, to_the_end: bool = False, whole: bool = False):
        alphas = alphas_cumprod.detach().cpu().double()  # some devices have no float64
        self.sigmas, self.to_the_end, self.whole = ((1 - alphas) / alphas).sqrt(), to_the_end, whole

    def levels(self, own: Tensor, total: int, last: int) -> Tensor:
        """See `Coordinates`. The host's DDIM and PLMS begin at the entry before the one that the noise was added for."""
        levels = self.sigmas[own[:last].flip(0).cpu()]
        return torch.cat([levels, self.sigmas[:1]]) if self.to_the_end else levels

    def rescaled(self, own: Tensor, rescale: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Coordinates`; to the nearest timestep."""
        return torch.tensor([self.nearest(float(sigma)) for sigma in rescale(self.sigmas[own.cpu()])]).to(own)

    def level(self, t: Tensor) -> float:
        """See `Coordinates`."""
        at = min(max(float(t.max()), 0.0), len(self.sigmas) - 1.0)
        at = float(round(at)) if self.whole else at
        below, above = math.floor(at), math.ceil(at)
        if below == above:
            return float(self.sigmas[below])
        # UniPC stands between the model's own timesteps, where log alpha is linear.
        logs = [-0.5 * math.log1p(float(self.sigmas[k]) ** 2) for k in (below, above)]
        log_alpha = logs[0] + (at - below) * (logs[1] - logs[0])
        return math.sqrt(math.expm1(-2 * log_alpha))

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
            # Without a look at its value: a device would have to be waited for at every call.
            level = sigma[:, None, None, None]
            timesteps = extra.pop("timesteps")
            return x - level.to(x.dtype) * model(x * (1 + level**2).rsqrt().to(x.dtype), timesteps, **extra)

        return denoise


def coordinates_of(function: Any, alphas_cumprod: Tensor, whole: bool = False) -> Coordinates:
    """The coordinates of a sampler that `check_sampler` let pass. `whole`: see `TimestepCoordinates`."""
    key = sampler_key(function)
    return TimestepCoordinates(alphas_cumprod, to_the_end=key == "unipc", whole=whole) if key in TIMESTEP_SAMPLERS else SigmaCoordinates()
