"""Window interaction: dilated views exchange pixels before they are denoised, and get their noise estimates back after.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.3, "Dilated Sampling with Window Interaction".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_permutations", "exchange", "exchange_back"]


def draw_permutations(views: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random bijection over the views for every position: (views, *shape) int64, on the CPU. The generator is the caller's own."""
    return torch.rand((views, *shape), generator=generator).argsort(dim=0)


def exchange(views: Tensor, permutations: Tensor) -> Tensor:
    """(views, ...) -> the same shape, mixed[b, p] = views[permutations[b, p], p]."""
    return views.gather(0, permutations)


def exchange_back(mixed: Tensor, permutations: Tensor) -> Tensor:
    """The inverse of `exchange`."""
    return torch.empty_like(mixed).scatter_(0, permutations, mixed)
