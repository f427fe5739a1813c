"""The embedded model's autoencoder: RGB pictures to latents a quarter of their size with four channels, and back.

Both halves are a straight (linear) path for colour plus layers for everything else: GroupNorm takes out how bright and how
colourful a picture is, so that through the layers alone a dark sky came back a stop brighter.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from apt_ext.demo.blocks import ResBlock, norm

__all__ = ["FACTOR", "LATENT_CHANNELS", "Autoencoder", "Decoder", "Encoder"]

FACTOR = 4
LATENT_CHANNELS = 4


def straight(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A linear map of each position that is zero at first, so that weights from before there was one mean what they meant."""
    layer = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class Encoder(nn.Module):
    """(B, 3, 4h, 4w) RGB in -1..1 to (B, 4, h, w)."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, width, 3, padding=1),
            ResBlock(width, width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            ResBlock(2 * width, 2 * width),
            ResBlock(2 * width, 2 * width),
            norm(2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, LATENT_CHANNELS, 3, padding=1),
        )
        self.colour = straight(3, LATENT_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.colour(F.avg_pool2d(x, FACTOR))


class Decoder(nn.Module):
    """(B, 4, h, w) latents to (B, 3, 4h, 4w) RGB, about -1..1."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.entry = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, 2 * width, 3, padding=1),
            ResBlock(2 * width, 2 * width),
            ResBlock(2 * width, 2 * width),
            nn.Conv2d(2 * width, width, 1),
        )
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            ResBlock(width, width),
            ResBlock(width, width),
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.exit = nn.Sequential(nn.SiLU(), nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.SiLU(), nn.Conv2d(width // 2, 3, 3, padding=1))
        self.colour = straight(LATENT_CHANNELS, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = F.interpolate(self.entry(z), scale_factor=2, mode="nearest")
        return self.exit(self.middle(h)) + F.interpolate(self.colour(z), scale_factor=FACTOR, mode="bilinear")


class Autoencoder(nn.Module):
    def __init__(self, width: int = 48):
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)
