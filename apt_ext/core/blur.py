"""Gaussian blur of latents, the filter of the dilated path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.statistics import widen
from apt_ext.core.windows import extend

__all__ = ["gaussian_blur", "gaussian_kernel"]


def gaussian_kernel(length: int, std: float, device: torch.device | None = None) -> Tensor:
    """(length,) float32 samples of a Gaussian about the middle, summing to one. A length of 1 is the identity."""
    x = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
    kernel = torch.exp(-(x**2) / (2 * std**2))
    return kernel / kernel.sum()


def gaussian_blur(x: Tensor, lengths: tuple[int, int], std: float, fill: str = "reflect") -> Tensor:
    """Separable Gaussian blur of every channel.

    Args:
        x: (B, C, H, W), computed in float32 at least.
        lengths: odd kernel lengths for rows and columns, in latent pixels.
        std: standard deviation, in latent pixels, above 0.
        fill: what lies beyond the border, "reflect" or "zero" (as in DemoFusion's own code).

    Returns:
        (B, C, H, W), in x's dtype.

    Raises:
        ValueError: for an even length, or a std that is not above 0.
    """
    rows, columns = lengths
    if rows % 2 == 0 or columns % 2 == 0 or not std > 0:
        raise ValueError(f"a blur of {rows} x {columns} pixels and std {std} cannot be made; use odd lengths and a std above 0")
    channels = x.shape[1]
    wide = extend(widen(x), rows // 2, columns // 2, rows // 2, columns // 2, fill)
    vertical = gaussian_kernel(rows, std, x.device).to(wide.dtype).view(1, 1, rows, 1).expand(channels, 1, rows, 1)
    horizontal = gaussian_kernel(columns, std, x.device).to(wide.dtype).view(1, 1, 1, columns).expand(channels, 1, 1, columns)
    return F.conv2d(F.conv2d(wide, vertical, groups=channels), horizontal, groups=channels).to(x.dtype)
