"""Latents, masks and conditioning at another size, where they are not enlarged as the method does it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.types import Size

__all__ = ["resized", "resized_conditioning"]


def resized(value: Tensor, size: Size, mode: str) -> Tensor:
    """A spatial tensor (B, C, H, W) or (C, H, W) at another size; what is not spatial (a 1 x 1 dummy, an embedding) is left alone."""
    if value.ndim < 3 or tuple(value.shape[-2:]) in (size, (1, 1)):
        return value
    batched = value if value.ndim == 4 else value[None]
    smooth = {"antialias": True} if mode == "bicubic" else {}
    resized = F.interpolate(batched.float(), size=size, mode=mode, **smooth).to(value.dtype)
    return resized if value.ndim == 4 else resized[0]


def resized_conditioning(value: Tensor, size: Size) -> Tensor:
    """Inpainting's (B, 5, H, W) has a mask in its first channel, which stays sharp; depth and edit latents are resized as pictures."""
    if value.ndim != 4 or value.shape[1] not in (5, 9):
        return resized(value, size, "bicubic")
    return torch.cat([resized(value[:, :1], size, "nearest-exact"), resized(value[:, 1:], size, "bicubic")], dim=1)
