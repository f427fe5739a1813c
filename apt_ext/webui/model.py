"""What the engine has to know of the loaded checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from apt_ext.core.noise_levels import discrete_timestep, flow_timestep
from apt_ext.core.types import ModelFacts, Size

__all__ = ["FACTOR", "FAMILIES", "POOLED", "Family", "crop_embedding", "facts_of", "family_of", "no_words", "window_option"]

FACTOR = 8  # pixels per latent pixel
POOLED = 1280  # SDXL's vector begins with the pooled prompt


class Family(NamedTuple):
    """What checkpoints of a family have in common.

    Attributes:
        label: for people. `side`: the native side in pixels.
        multiple: what the sides of the network's input have to be multiples of, in latent pixels; a transformer's patches.
        pooled: how much of the vector beside the prompt is the prompt's own; None for all of it.
        flow: whether it is of rectified flow. `unet`: whether the network is a UNet, with cross-attention and layers that can go round the border.
        own_length: whether a prompt has as many tokens as it needs; elsewhere prompts fill one chunk or several.
    """

    label: str
    side: int
    multiple: int
    pooled: int | None = None
    flow: bool = False
    unet: bool = True
    own_length: bool = False


FAMILIES = {
    "sd1": Family("SD 1.x", 512, 8),
    "sd2": Family("SD 2.x", 512, 8),
    "sd2v": Family("SD 2.x 768-v", 768, 8),
    "sdxl": Family("SDXL", 1024, 4, POOLED),
    "sd3": Family("SD3", 1024, 2, flow=True, unet=False),
    "flux": Family("Flux", 1024, 2, flow=True, unet=False),
    "chroma": Family("Chroma", 1024, 2, flow=True, unet=False, own_length=True),
    "zimage": Family("Z-Image", 1024, 2, flow=True, unet=False, own_length=True),
    "lumina2": Family("Lumina 2", 1024, 2, flow=True, unet=False, own_length=True),
    "sdxlrf": Family("SDXL of rectified flow", 1024, 4, POOLED, flow=True),
    "mugen": Family("Mugen", 1024, 4, POOLED, flow=True),
}


def family_of(model: Any) -> str:
    """The family of a checkpoint.

    Raises:
        ValueError: for one that patch fusion does not work with here.
    """
    if getattr(model, "is_sd3", False):
        raise ValueError("SD3 checkpoints are not supported yet; choose an SD 1.x, SD 2.x or SDXL checkpoint")
    if getattr(model, "is_sdxl", False):
        return "sdxl"
    if getattr(model, "is_sd2", False):
        return "sd2v" if getattr(model, "parameterization", "eps") == "v" else "sd2"
    return "sd1"


def no_words(family: str) -> str | None:
    """Why words cannot be told apart in a prompt for a family's checkpoints, in half a sentence; None where they can."""
    known = FAMILIES[family]
    return None if known.unet else f"on {known.label} checkpoints, which have no cross-attention to see them in; choose an SD 1.x, SD 2.x or SDXL checkpoint"


def window_option(family: str) -> str:
    """Name of the setting that holds a family's native side in pixels."""
    return f"apt_window_{family}"


def facts_of(family: str, sigmas: Tensor, pixels: int) -> ModelFacts:
    """What the engine needs of a checkpoint: `sigmas` are its ascending noise levels, which say nothing of flow models; `pixels` the native side."""
    known, window = FAMILIES[family], Size(pixels // FACTOR, pixels // FACTOR)
    if known.flow:
        return ModelFacts(window, known.multiple, math.inf, flow_timestep)
    return ModelFacts(window, known.multiple, float(sigmas[-1]), discrete_timestep(sigmas))


def crop_embedding(model: Any) -> Callable[[Tensor], Tensor] | None:
    """SDXL's own embedding of the crop corner; None for a model without one."""
    embedders = getattr(getattr(model, "conditioner", None), "embedders", ())
    return next((embedder for embedder in embedders if getattr(embedder, "input_key", None) == "crop_coords_top_left"), None)
