"""Noise levels: the weights of the two paths, APT's Scale-aware Scheduling and the shortcut.

All sigmas are k-diffusion's: x = z + sigma * n, SNR = 1 / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from apt_ext.core.statistics import EACH_CHANNEL, mean_std
from apt_ext.core.windows import draw_windows, gather_windows

__all__ = [
    "PathWeights",
    "auto_gamma",
    "cosine_weights",
    "discrete_timestep",
    "flow_timestep",
    "path_shares",
    "scale_aware_sigmas",
    "scale_aware_times",
    "shortcut_sigmas",
    "shortcut_start",
    "unscaled_sigma",
    "window_std",
]

TRAINING_STEPS = 1000.0


class PathWeights(NamedTuple):
    """c1: share of the skip residual. c2: share of the dilated path. c3: factor of the blur's std. All 0 to 1."""

    c1: float
    c2: float
    c3: float


def cosine_weights(t: float, exponents: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> PathWeights:
    """DemoFusion's decaying weights at a timestep.

    Args:
        t: the model's own timestep, 0 (clean) to 1000 (noise).
        exponents: a1, a2, a3 of the skip residual, the dilated path and the blur.

    Returns:
        c1 = cosine^a1, c2 = cosine^a2, c3 = 0.99 cosine^a3 + 0.01, where cosine = (1 + cos(pi (1000 - t) / 1000)) / 2.

    Source: DemoFusion (Du et al., CVPR 2024), section 3, and the constants of its published code.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * (TRAINING_STEPS - t) / TRAINING_STEPS))
    a1, a2, a3 = exponents
    return PathWeights(cosine**a1, cosine**a2, 0.99 * cosine**a3 + 0.01)


def path_shares(c2: float, tolerance: float) -> tuple[float, float]:
    """Weights of the (local, dilated) path; one below the tolerance is 0, is not evaluated, and the other path gets all."""
    if 1 - c2 < tolerance:
        return 0.0, 1.0
    return (1.0, 0.0) if c2 < tolerance else (1 - c2, c2)


def discrete_timestep(sigmas: Tensor) -> Callable[[float], float]:
    """sigma -> t for a model with a table of noise levels, interpolated in log sigma.

    Args:
        sigmas: (T,) ascending noise levels, as k-diffusion's `DiscreteSchedule.sigmas`.
    """
    logs = [math.log(s) for s in sigmas.double().tolist()]
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


def window_std(z: Tensor, window: tuple[int, int]) -> float:
    """Mean standard deviation inside the windows of a clean latent: (B, C, H, W) -> the std over each half-overlapping window and channel, averaged."""
    size = (z.shape[-2], z.shape[-1])
    windows = draw_windows(0, size=size, window=window, overlap=0.5, jitter=0.0)
    return float(torch.stack([mean_std(gather_windows(z, [w]), EACH_CHANNEL)[1].mean() for w in windows]).mean())


def auto_gamma(z_start: Tensor, reference: Tensor, window: tuple[int, int], scale: float) -> float:
    """The exponent that keeps a window's signal-to-noise ratio where the model knows it.

    Args:
        z_start: (B, C, H, W), the phase's clean starting latent.
        reference: (B, C, h, w), the base latent.
        window: (rows, columns) of a local window.
        scale: s of the phase.

    Returns:
        ln(r) / ln(s), r = std inside z_start's windows over the same for the reference; 0 where s is 1 or either has no contrast.
    """
    if scale <= 1:
        return 0.0
    r = window_std(z_start, window) / max(window_std(reference, window), 1e-12)
    return math.log(r) / math.log(scale) if 1e-6 < r < 1e6 else 0.0


def shortcut_start(steps: int, fraction: float) -> int:
    """Index of the step at which a phase starts: (1 - fraction) of `steps`, rounded.

    Args:
        steps: N of the whole schedule. `fraction`: f in (0, 1]; 1 runs every step. It is the host's "denoising strength".

    Raises:
        ValueError: for a fraction outside (0, 1], or one that leaves no step.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"shortcut {fraction} is out of range; use a number above 0 and up to 1 (1 runs every step)")
    if steps < 1:
        raise ValueError(f"a schedule of {steps} steps cannot be shortened; use at least one")
    start = round((1 - fraction) * steps)
    if start == steps:
        raise ValueError(f"shortcut {fraction:g} of {steps} steps leaves no step to run; use a larger one or more steps")
    return start


def shortcut_sigmas(sigmas: Tensor, fraction: float) -> Tensor:
    """The noise levels that a phase runs: (N + 1,) of the whole schedule -> those from `shortcut_start` on."""
    return sigmas[shortcut_start(len(sigmas) - 1, fraction) :]
