"""How the host's samplers write noisy latents and noise levels, against k-diffusion's that the engine works in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from apt_ext.core.noise_levels import scale_aware_sigmas, scale_aware_times
from apt_ext.core.statistics import at_least_float32
from apt_ext.core.types import Denoiser

__all__ = ["Coordinates", "FlowCoordinates", "SigmaCoordinates", "TimestepCoordinates"]

LATEST = 1 - 2.0**-20  # at time 1 nothing of the picture is left, and k-diffusion's noise level would be infinite


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

    def rescaled(self, own: Tensor, scale: float, gamma: float, sigma_max: float) -> Tensor:
        """The sampler's list for a phase, by Scale-aware Scheduling; see `scale_aware_sigmas`."""
        ...

    def level(self, t: Tensor) -> float:
        """The sampler's (B,) noise levels or timesteps, all alike -> sigma."""
        ...

    def inner(self, levels: list[float], calls: Callable[[list[float]], list[list[float]]]) -> list[list[float]]:
        """What a sampler makes of a list in its own coordinates, `call_levels`, -> the sigmas of its calls, from those of the list."""
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

    def rescaled(self, own: Tensor, scale: float, gamma: float, sigma_max: float) -> Tensor:
        """See `Coordinates`."""
        return scale_aware_sigmas(own, scale, gamma, sigma_max)

    def level(self, t: Tensor) -> float:
        """See `Coordinates`."""
        return float(t.max())

    def inner(self, levels: list[float], calls: Callable[[list[float]], list[list[float]]]) -> list[list[float]]:
        """See `Coordinates`."""
        return calls(levels)

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

    def rescaled(self, own: Tensor, scale: float, gamma: float, sigma_max: float) -> Tensor:
        """See `Coordinates`; to the nearest timestep."""
        levels = scale_aware_sigmas(self.sigmas[own.cpu()], scale, gamma, sigma_max)
        return torch.tensor([self.nearest(float(sigma)) for sigma in levels]).to(own)

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

    def inner(self, levels: list[float], calls: Callable[[list[float]], list[list[float]]]) -> list[list[float]]:
        """See `Coordinates`. None of these samplers calls its model between two entries of its list."""
        return calls(levels)

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


class FlowCoordinates:
    """Those of rectified flow, whose hosts give k-diffusion's samplers times for noise levels: the state is (1 - t) z + t n, which is x / (1 + sigma)
    with t = sigma / (1 + sigma).
    """

    getter = "get_sigmas"

    def levels(self, own: Tensor, total: int, last: int) -> Tensor:
        """See `Coordinates`.

        Raises:
            ValueError: for a list that leaves the times, as some schedules of other models do.
        """
        times = own[total - last - 1 :].cpu().double()  # some devices have no float64
        if not bool(((times[:-1] > 0) & (times[:-1] <= 1)).all()) or not 0 <= float(times[-1]) < 1:
            wrong = next(float(t) for t in times if not 0 < t <= 1)
            raise ValueError(f"the schedule type has noise level {wrong:g}, and this checkpoint's are above 0 and at most 1; choose Simple, Normal or Beta")
        times = times.clamp(max=LATEST)
        return times / (1 - times)

    def rescaled(self, own: Tensor, scale: float, gamma: float, sigma_max: float) -> Tensor:
        """See `Coordinates`; there is no largest sigma."""
        return scale_aware_times(own, scale, gamma)

    def level(self, t: Tensor) -> float:
        """See `Coordinates`."""
        time = min(float(t.max()), LATEST)
        return time / (1 - time)

    def inner(self, levels: list[float], calls: Callable[[list[float]], list[list[float]]]) -> list[list[float]]:
        """See `Coordinates`."""
        return [[time / (1 - time) for time in step] for step in calls([level / (1 + level) for level in levels])]

    def noised(self, z: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Coordinates`."""
        return z / (1 + sigma), noise / (1 + sigma)

    def estimate(self, engine: Denoiser, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """See `Coordinates`. The sampler's own times go through to the model, which has to see them as they are."""
        sigma = self.level(t)
        levels = torch.full_like(t, sigma, dtype=torch.float32)
        return engine(at_least_float32(x) * (1 + sigma), levels, timesteps=t, **extra).to(x.dtype)

    def denoiser(self, model: Callable[..., Tensor]) -> Denoiser:
        """See `Coordinates`."""

        def denoise(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            timesteps = extra.pop("timesteps")
            return model((x / (1 + sigma[:, None, None, None])).to(timesteps.dtype), timesteps, **extra)

        return denoise
