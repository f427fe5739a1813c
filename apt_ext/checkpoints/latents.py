"""A checkpoint's autoencoder: pictures to latents and back, in tiles where the picture is large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apt_ext.core.tiles.autoencoder import run_in_tiles
from apt_ext.core.types import Deal

__all__ = ["Autoencoder"]

TILE, HALO = 96, 16  # latent pixels, as in the WebUI


@contextmanager
def _tiled(half: nn.Module, factor: Fraction, tile: int, halo: int, deal: Deal) -> Iterator[None]:
    """Within the block, an encoder or a decoder works tile by tile, with the group normalisation of the whole picture."""
    before: Callable[[Tensor], Tensor] | None = half.__dict__.get("forward")
    forward: Callable[..., Tensor] = half.forward

    def run(x: Tensor, *more: Any) -> Tensor:
        return run_in_tiles(half, lambda part: forward(part, *more), x, factor, tile=tile, halo=halo, deal=deal).to(x.dtype)

    half.__dict__["forward"] = run
    try:
        yield
    finally:
        if before is None:
            half.__dict__.pop("forward", None)
        else:
            half.__dict__["forward"] = before


class Autoencoder:
    """diffusers' `AutoencoderKL` as a job wants it.

    Args:
        vae: the part of the pipeline.
        by_layers: whether its layers are moved one by one (sequential offloading). Its own tiling is used then, whose tiles are normalised each by
            itself: what this project's tiles hold still in a layer would get into the way of what moves it.

    Attributes:
        factor: pixels per latent pixel. `channels`: of a latent. `scale`, `shift`: a latent is (what the VAE encodes - shift) * scale.

    Raises:
        ValueError: for another kind of autoencoder.
    """

    def __init__(self, vae: Any, by_layers: bool = False):
        if type(vae).__name__ != "AutoencoderKL":
            raise ValueError(f"the VAE is a {type(vae).__name__}, which large pictures cannot be taken through; use an AutoencoderKL, with --vae, say")
        self.vae, self.by_layers = vae, by_layers
        config = vae.config
        self.factor, self.channels = 2 ** (len(config.block_out_channels) - 1), int(config.latent_channels)
        self.scale, self.shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        means, stds = config.get("latents_mean"), config.get("latents_std")
        self._moments = None if means is None or stds is None else tuple(torch.tensor(values).view(1, -1, 1, 1) for values in (means, stds))
        if by_layers:
            vae.enable_tiling()

    @torch.no_grad()
    def encode(self, pixels: Tensor, device: torch.device, deal: Deal = map) -> Tensor:
        """(B, 3, H, W) RGB in -1..1 -> (B, C, h, w) float32: the means of the distributions, so that a picture has one latent. `deal`: who runs the tiles."""
        x = pixels.to(device, self.vae.dtype)
        with self._tiles(self.vae.encoder, Fraction(1, self.factor), TILE * self.factor, HALO * self.factor, deal):
            z = self.vae.encode(x).latent_dist.mode().float()
        if self._moments is not None:
            mean, std = (value.to(z) for value in self._moments)
            return (z - mean) * self.scale / std
        return (z - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor, deal: Deal = map) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32 in -1..1. `deal`: who runs the tiles."""
        if self._moments is not None:
            mean, std = (value.to(z) for value in self._moments)
            z = z * std / self.scale + mean
        else:
            z = z / self.scale + self.shift
        with self._tiles(self.vae.decoder, Fraction(self.factor), TILE, HALO, deal):
            return self.vae.decode(z.to(self.vae.dtype)).sample.float().clamp_(-1, 1)

    @property
    def _tiles(self) -> Callable[..., Any]:
        return _whole if self.by_layers else partial(_tiled)


@contextmanager
def _whole(*_: Any) -> Iterator[None]:
    yield
