"""The embedded model's UNet: predicts v for 16x16 latents (or any size that is a multiple of 4) at a timestep and in a style."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ext.demo.autoencoder import LATENT_CHANNELS
from apt_ext.demo.blocks import ResBlock, norm

__all__ = ["MULTIPLE", "UNet"]

MULTIPLE = 4  # two halvings


class Attention(nn.Module):
    """Plain multi-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    """Args: `classes` styles plus one index for "no style" (classifier-free guidance); `widths` per resolution."""

    def __init__(self, classes: int, widths: tuple[int, int, int] = (64, 128, 192), embedding: int = 256):
        super().__init__()
        a, b, c = widths
        self.style = nn.Embedding(classes + 1, embedding)
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.entry = nn.Conv2d(LATENT_CHANNELS, a, 3, padding=1)
        self.down1 = nn.ModuleList([ResBlock(a, a, embedding), ResBlock(a, a, embedding)])
        self.to2 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down2 = nn.ModuleList([ResBlock(b, b, embedding), ResBlock(b, b, embedding)])
        self.attention_down = Attention(b)
        self.to3 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([ResBlock(c, c, embedding), ResBlock(c, c, embedding)])
        self.attention = Attention(c)
        self.up2 = nn.ModuleList([ResBlock(c + b, b, embedding), ResBlock(b, b, embedding)])
        self.attention_up = Attention(b)
        self.up1 = nn.ModuleList([ResBlock(b + a, a, embedding), ResBlock(a, a, embedding)])
        self.exit = nn.Sequential(norm(a), nn.SiLU(), nn.Conv2d(a, LATENT_CHANNELS, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
        """(B, 4, h, w) noisy latents (variance preserving), (B,) timesteps 0..999, (B,) style indices -> (B, 4, h, w) v."""
        frequencies = torch.exp(-math.log(10000) / 32 * torch.arange(32, device=x.device, dtype=torch.float32))
        angles = t.float()[:, None] * frequencies
        e = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype)) + self.style(style))
        h1 = self.entry(x)
        for block in self.down1:
            h1 = block(h1, e)
        h2 = self.to2(h1)
        for block in self.down2:
            h2 = block(h2, e)
        h2 = self.attention_down(h2)
        h = self.to3(h2)
        h = self.middle[1](self.attention(self.middle[0](h, e)), e)
        h = torch.cat([F.interpolate(h, scale_factor=2, mode="nearest"), h2], 1)
        for block in self.up2:
            h = block(h, e)
        h = self.attention_up(h)
        h = torch.cat([F.interpolate(h, scale_factor=2, mode="nearest"), h1], 1)
        for block in self.up1:
            h = block(h, e)
        return self.exit(h)
