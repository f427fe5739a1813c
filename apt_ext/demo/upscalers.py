"""How pictures are enlarged before a phase: by a filter, or by an upscaling network from a model file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from PIL import Image

from apt_ext.core.tiles.map import map_tiles
from apt_ext.core.types import Deal
from apt_ext.demo.pictures import to_picture, to_tensor
from apt_ext.demo.samplers import ensure_torchvision
from apt_ext.options import UPSCALERS

__all__ = ["FILTERS", "Enlarger", "enlarger"]

Enlarger = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""(picture, (width, height)) -> the picture at that size."""

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
TILE, HALO = 256, 32  # pixels of the smaller picture that a network sees at once


def _filtered(picture: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return picture.resize(size, method)


@cache  # asked for when a command begins and again by each picture's job
def _network(path: str, device: torch.device) -> Any:
    try:
        ensure_torchvision()
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError:
        raise ValueError(f"upscaler {path!r} is a model file, which needs the package spandrel; run: pip install spandrel") from None
    try:
        network = ModelLoader(device).load_from_file(path)
    except Exception as error:  # whatever a loader stumbles over in a file that is no model
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"upscaler {path!r} is no upscaling model that can be read ({reason}); use another file, or lanczos") from None
    if not isinstance(network, ImageModelDescriptor) or network.input_channels != 3 or network.scale < 2:
        raise ValueError(f"upscaler {path!r} is no model that enlarges colour pictures; use another file, or lanczos")
    network.eval()
    return network


def _by_network(path: str, device: torch.device, deal: Deal) -> Enlarger:
    network = _network(path, device)

    @torch.no_grad()
    def enlarge(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        while picture.width < size[0] or picture.height < size[1]:
            pixels = (to_tensor(picture).to(device) + 1) / 2
            picture = to_picture(map_tiles(network, pixels, network.scale, tile=TILE, halo=HALO, deal=deal)[0] * 2 - 1)
        return _filtered(picture, size, Image.Resampling.LANCZOS)

    return enlarge


def enlarger(name: str, device: torch.device, deal: Deal = map) -> Enlarger | None:
    """What a name means: a filter, a model file that spandrel reads, or None for "latent", where no pixels are enlarged. `deal`: who runs a network.

    Raises:
        ValueError: for a file that does not exist or is no such model.
    """
    if name == "latent":
        return None
    if name in FILTERS:
        return partial(_filtered, method=FILTERS[name])
    if not os.path.isfile(name):
        raise ValueError(f"upscaler {name!r} does not exist; use {', '.join(UPSCALERS)}, or the path of a model file")
    return _by_network(name, device, deal)
