"""Noise levels: the model's timesteps, APT's Scale-aware Scheduling and the shortcut.

All sigmas are k-diffusion's: x = z + sigma * n, SNR = 1 / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from apt_ext.core.weights import TRAINING_STEPS

__all__ = [
    "discrete_timestep",
    "flow_timestep",
    "scale_aware_sigmas",
    "scale_aware_times",
    "shortcut_sigmas",
    "shortcut_start",
    "unscaled_sigma",
]


def discrete_timestep(sigmas: Tensor) -> Callable[[float], float]:
    """sigma -> t for a model with a table of noise levels, interpolated in log sigma.

    Args:
        sigmas: (T,) ascending noise levels, as k-diffusion's `DiscreteSchedule.sigmas`.
    """
    logs = [math.log(s) for s in sigmas.tolist()]
    scale = TRAINING_STEPS / len(logs)

    def timestep(sigma: float) -> float:
        target = math.log(max(sigma, 1e-12))
        if target <= logs[0]:
            return 0.0
        if target >= logs[-1]:
            return (len(logs) - 1) * scale
        low, high = 0, len(logs) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if logs[middle] <= target else (low, middle)
        return (low + (target - logs[low]) / (logs[high] - logs[low])) * scale

    return timestep


def flow_timestep(sigma: float) -> float:
    """sigma -> t for rectified flow in k-diffusion's coordinates: x / (1 + sigma) = (1 - t) z + t n with t = sigma / (1 + sigma)."""
    return TRAINING_STEPS * sigma / (1 + sigma)


def _scaled(sigma: Tensor, factor: float, sigma_max: float) -> Tensor:
    """SNR' = SNR_T + (SNR - SNR_T) * factor, as noise levels, in float64; 0 stays 0 and sigma_max stays sigma_max."""
    s = sigma.detach().to("cpu", torch.float64)  # some devices have no float64
    if bool((s > sigma_max * (1 + 1e-3)).any()):
        raise ValueError(f"noise level {float(s.max()):.6g} is above sigma_max {sigma_max:.6g}; pass the model's own largest sigma")
    snr_t = 0.0 if math.isinf(sigma_max) else sigma_max**-2
    snr = snr_t + (s.clamp(min=1e-12) ** -2 - snr_t).clamp(min=0) * factor
    return torch.where(s > 0, snr**-0.5, s)


def scale_aware_sigmas(sigmas: Tensor, scale: float, gamma: float, sigma_max: float) -> Tensor:
    """Scale-aware Scheduling: the noise levels of a phase as a function of its scale.

    Args:
        sigmas: (N,) any noise levels up to sigma_max, 0 included.
        scale: s, the linear ratio of the phase's size to the base size.
        gamma: exponent; 0 is the identity, exactly; negative gives a larger picture less noise, positive more.
        sigma_max: the model's largest noise level, which stays where it is; may be infinite (zero terminal SNR).

    Returns:
        (N,) in the same dtype, in the same order: SNR'(sigma) = SNR_T + (SNR(sigma) - SNR_T) / s^(2 gamma), SNR_T = 1 / sigma_max^2,
        that is sigma' = s^gamma sigma well below sigma_max.

    Raises:
        ValueError: for a noise level above sigma_max.

    Source: APT (arXiv 2507.21690), "Scale-aware Scheduling"; the form is this project's.
    """
    if gamma == 0 or scale == 1:
        return sigmas
    return _scaled(sigmas, scale ** (-2 * gamma), sigma_max).to(sigmas)


def unscaled_sigma(sigma: float, scale: float, gamma: float, sigma_max: float) -> float:
    """The noise level that `scale_aware_sigmas` turned into `sigma`: where the cosine weights of the same step are taken."""
    if gamma == 0 or scale == 1:
        return sigma
    # A level reached by an inner evaluation or by churn may lie a little above sigma_max.
    return float(_scaled(torch.tensor(min(sigma, sigma_max), dtype=torch.float64), scale ** (2 * gamma), sigma_max))


def scale_aware_times(t: Tensor, scale: float, gamma: float) -> Tensor:
    """Scale-aware Scheduling for rectified flow: times 0 (clean) to 1 (noise), t' = r t / (1 + (r - 1) t) with r = scale^gamma.

    Since sigma = t / (1 - t) there, this is sigma' = r sigma, the same rule with an infinite sigma_max.
    """
    if gamma == 0 or scale == 1:
        return t
    r = scale**gamma
    return r * t / (r * t + (1 - t))  # the same, but exact at 0 and at 1


def shortcut_start(steps: int, strength: float) -> int:
    """Index of the step at which a phase starts: (1 - strength) of `steps`, rounded.

    Args:
        steps: N of the whole schedule.
        strength: f in (0, 1]; 1 runs every step. It is the host's "denoising strength".

    Raises:
        ValueError: for a strength outside (0, 1], or one that leaves no step.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is out of range; use a number above 0 and up to 1 (1 runs every step)")
    if steps < 1:
        raise ValueError(f"a schedule of {steps} steps cannot be shortened; use at least one")
    start = round((1 - strength) * steps)
    if start == steps:
        raise ValueError(f"strength {strength:g} of {steps} steps leaves no step to run; use a larger one or more steps")
    return start


def shortcut_sigmas(sigmas: Tensor, strength: float) -> Tensor:
    """The noise levels that a phase runs: (N + 1,) of the whole schedule -> those from `shortcut_start` on."""
    return sigmas[shortcut_start(len(sigmas) - 1, strength) :]
