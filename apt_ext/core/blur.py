"""Gaussian blur of latents, the filter of the dilated path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apt_ext.core.borders import extend
from apt_ext.core.statistics import at_least_float32

__all__ = ["gaussian_blur", "gaussian_kernel"]

CUT_OFF = 6.0
"""Taps further out than so many stds weigh less than float32's rounding of the middle one and are left out, so that the time of a blur hangs
on its std and not on the kernel's length, which grows with the dilation."""


def gaussian_kernel(length: int, std: float, device: torch.device | None = None) -> Tensor:
    """(length,) float32 samples of a Gaussian about the middle, summing to one. A length of 1 is the identity."""
    x = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
    kernel = torch.exp(-(x**2) / (2 * std**2))
    return kernel / kernel.sum()


def _weigh(x: Tensor, kernel: list[float], dim: int) -> Tensor:
    """Correlate along one axis, tap by tap: plain sums in x's own precision on every device, where a GPU's convolution may round to TF32."""
    length = x.shape[dim] - len(kernel) + 1
    out = x.narrow(dim, 0, length) * kernel[0]
    for k, weight in enumerate(kernel[1:], 1):
        out.add_(x.narrow(dim, k, length), alpha=weight)
    return out


def gaussian_blur(x: Tensor, lengths: tuple[int, int], std: float, fill: str = "reflect") -> Tensor:
    """Separable Gaussian blur of every channel.

    Args:
        x: (B, C, H, W), computed in float32 at least.
        lengths: odd kernel lengths for rows and columns, in latent pixels.
        std: standard deviation, in latent pixels, above 0.
        fill: what lies beyond the border: "reflect", "zero" (as in DemoFusion's own code), or one of `fill_around`.

    Returns:
        (B, C, H, W), in x's dtype.

    Raises:
        ValueError: for an even length, or a std that is not above 0.
    """
    rows, columns = lengths
    if rows % 2 == 0 or columns % 2 == 0 or not std > 0:
        raise ValueError(f"a blur of {rows} x {columns} pixels and std {std} cannot be made; use odd lengths and a std above 0")
    rows, columns = (min(length // 2, math.ceil(CUT_OFF * std)) for length in lengths)
    out = extend(at_least_float32(x), rows, columns, rows, columns, fill)
    for reach, axis in ((rows, -2), (columns, -1)):
        out = _weigh(out, gaussian_kernel(2 * reach + 1, std).tolist(), axis)
    return out.to(x.dtype)
