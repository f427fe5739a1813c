"""The host's VAE: encoding, decoding and enlarging of latents, in tiles where the picture is large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from modules import devices, processing, sd_samplers_common, shared
from PIL import Image
from torch import Tensor, nn

from apt_ext.core.borders import NOWHERE, extend, fill_around
from apt_ext.core.tiles.autoencoder import run_in_tiles
from apt_ext.core.types import Around, Size
from apt_ext.core.upscale import enlarge
from apt_ext.webui.hosts.borders import with_borders
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.hosts.extensions import idle
from apt_ext.webui.latents.upscalers import LATENT, enlarge_picture
from apt_ext.webui.model import FACTOR

__all__ = ["decode", "encode", "enlarge_latent", "pictures_of", "tiled_by_another", "tiled_vae", "to_picture", "upsampler"]

TILE, HALO = 96, 16  # latent pixels; 768 px tiles fit where a native picture is sampled


def _tiled(half: nn.Module, factor: Fraction, tile: int, halo: int, around: Around) -> Callable[[Tensor], Tensor]:
    """An encoder's or a decoder's forward, tile by tile. Statistics are taken from all tiles: a sample's are less close on a decoder of this depth.

    Tiles of a seamless picture would each go round their own border. Its other side is laid beside it instead, and falls off again; so it is in
    every encoder, since those of Stable Diffusion lay zeros at two of the borders themselves.
    """
    forward: Callable[[Tensor], Tensor] = half.forward

    def run(x: Tensor) -> Tensor:
        if around == NOWHERE or (factor > 1 and max(x.shape[-2:]) <= tile):
            return in_tiles(x)
        rows, columns = (halo * on for on in around)
        wide = extend(x, rows, columns, rows, columns, fill_around("reflect", around))
        with with_borders(half):
            made = in_tiles(wide)
        top, left = int(rows * factor), int(columns * factor)
        return made[..., top : made.shape[-2] - top, left : made.shape[-1] - left]

    def in_tiles(x: Tensor) -> Tensor:
        if max(x.shape[-2:]) > tile:
            # The host does not round the sizes of "Resize by"; its encoder drops what does not fill a latent pixel.
            rows, columns = (side - side % factor.denominator for side in x.shape[-2:])
            x = x[..., :rows, :columns]
        return run_in_tiles(half, forward, x, factor, tile=tile, halo=halo).to(x.dtype)

    return run


@contextmanager
def tiled_vae(model: Any, on: bool = True, around: Around = NOWHERE) -> Iterator[Callable[[Any], None]]:
    """Within the block, this model's VAE works in tiles; afterwards it is what it was.

    Only the encoder and the decoder of this instance are changed, so the host's choice of VAE, its precision, its NaN check and TAESD stay
    as they are. Where another extension has its own forward there, it is left to that one.

    Args:
        around: the axes along which its pictures are seamless.

    Yields:
        What to call with another model that takes the first one's place within the block, such as the refiner.
    """
    with ExitStack() as stack:

        def follow(model: Any) -> None:
            if on:
                stack.enter_context(_halves_tiled(model, around))

        follow(model)
        yield follow


@contextmanager
def _halves_tiled(model: Any, around: Around) -> Iterator[None]:
    sizes = {"encoder": (Fraction(1, FACTOR), TILE * FACTOR, HALO * FACTOR), "decoder": (Fraction(FACTOR), TILE, HALO)}
    ours = [(half, *sizes[name], vars(half).get("forward")) for name, half in host().vae_halves(model).items() if idle(half)]
    try:
        for half, factor, tile, halo, _ in ours:
            half.__dict__["forward"] = _tiled(half, factor, tile, halo, around)
        yield
    finally:
        for half, *_, before in ours:
            if before is None:
                half.__dict__.pop("forward", None)
            else:
                half.__dict__["forward"] = before


def tiled_by_another(model: Any) -> bool:
    """Whether another extension has its own forward in this model's VAE."""
    return not all(map(idle, host().vae_halves(model).values()))


def decode(model: Any, latent: Tensor) -> list[Tensor]:
    """(B, 4, h, w) -> B pictures (3, 8h, 8w) in -1..1 on the CPU, with the host's NaN check and its retry at higher precision."""
    return processing.decode_latent_batch(model, latent, target_device=devices.cpu, check_for_nans=True)


def to_picture(sample: Tensor) -> Image.Image:
    """(3, H, W) in -1..1 -> a picture, cut to whole levels as the host cuts them."""
    values = ((sample.float() + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values.astype(np.uint8))


def pictures_of(model: Any, latent: Tensor) -> list[Image.Image]:
    """(B, 4, h, w) -> B pictures."""
    return [to_picture(sample) for sample in decode(model, latent)]


def encode(model: Any, pictures: list[Image.Image]) -> Tensor:
    """B pictures of one size, sides multiples of 8 -> (B, 4, h, w)."""
    values = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255 for picture in pictures])
    image = torch.from_numpy(values).to(shared.device, dtype=devices.dtype_vae)
    return sd_samplers_common.images_tensor_to_samples(image, sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method), model)


def enlarge_latent(z: Tensor, size: Size, around: Around = NOWHERE) -> Tensor:
    """A latent at (rows, columns), bicubically; at its own size, it itself."""
    return z if tuple(z.shape[-2:]) == tuple(size) else enlarge(z, size, around)


def upsampler(model: Any, name: str, around: Around = NOWHERE) -> Callable[[Tensor, Size], Tensor]:
    """How latents are enlarged between the phases, by an upscaler from `upscalers.resolved`: through their pixels, or as latents."""
    if name == LATENT:
        return partial(enlarge_latent, around=around)

    def through_pixels(z: Tensor, size: Size) -> Tensor:
        if tuple(z.shape[-2:]) == tuple(size):
            return z
        larger = (enlarge_picture(picture, (size[1] * FACTOR, size[0] * FACTOR), name, around=around) for picture in pictures_of(model, z))
        return torch.cat([encode(model, [picture]) for picture in larger]).to(z)

    return through_pixels
