"""What the engine has to know of the loaded checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.types import ModelFacts, Size

__all__ = ["FACTOR", "FAMILIES", "POOLED", "crop_embedding", "facts_of", "family_of", "window_option"]

FACTOR = 8  # pixels per latent pixel
POOLED = 1280  # SDXL's vector begins with the pooled prompt

# Family: label, native side in pixels, and what the UNet's sides have to be multiples of, in latent pixels.
FAMILIES: dict[str, tuple[str, int, int]] = {
    "sd1": ("SD 1.x", 512, 8),
    "sd2": ("SD 2.x", 512, 8),
    "sd2v": ("SD 2.x 768-v", 768, 8),
    "sdxl": ("SDXL", 1024, 4),
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


def window_option(family: str) -> str:
    """Name of the setting that holds a family's native side in pixels."""
    return f"apt_window_{family}"


def facts_of(family: str, sigmas: Tensor, pixels: int) -> ModelFacts:
    """What the engine needs of a checkpoint: `sigmas` are its ascending noise levels, `pixels` the native side."""
    multiple = FAMILIES[family][2]
    return ModelFacts(Size(pixels // FACTOR, pixels // FACTOR), multiple, float(sigmas[-1]), discrete_timestep(sigmas))


def crop_embedding(model: Any) -> Callable[[Tensor], Tensor] | None:
    """SDXL's own embedding of the crop corner; None for a model without one."""
    embedders = getattr(getattr(model, "conditioner", None), "embedders", ())
    return next((embedder for embedder in embedders if getattr(embedder, "input_key", None) == "crop_coords_top_left"), None)
