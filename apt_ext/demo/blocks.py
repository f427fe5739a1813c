"""The two building blocks that the autoencoder and the UNet share."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

__all__ = ["ResBlock", "channels_last", "norm"]


def channels_last(module: Module, device: torch.device) -> Module:
    """The module on a device, in the memory layout that convolutions are fastest in."""
    module.to(device)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 16 channels (8 where 16 does not divide them)."""
    return nn.GroupNorm(channels // (16 if channels % 16 == 0 else 8), channels)


class ResBlock(nn.Module):
    """norm, SiLU, conv, (scale and shift by an embedding), norm, SiLU, conv, plus the input."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int = 0):
        super().__init__()
        self.norm1, self.conv1 = norm(channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2, self.conv2 = norm(channels_out), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * channels_out) if embedding else None
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.embed is not None and embedding is not None:
            scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))
