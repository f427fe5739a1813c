"""Masks: where something new may come in, and where a picture stays what its enlargement is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from apt_ext.core.types import Deal, Sampler, Size
from apt_ext.demo.pictures import to_picture
from apt_ext.demo.upscalers import enlarger
from apt_ext.demo.wanted import Source

__all__ = ["free_at", "outside", "within"]


def free_at(mask: Tensor, size: Size) -> Tensor:
    """A mask in pixels, (1, 1, H, W) in 0..1 with 1 where something new may come in, at (rows, columns) of a latent.

    A latent pixel is as free as the pixels that it stands for; where the latent is larger, the mask is enlarged.
    """
    shrunk = F.adaptive_avg_pool2d(mask, (min(mask.shape[-2], size.rows), min(mask.shape[-1], size.columns)))
    return F.interpolate(shrunk, size=list(size), mode="bilinear") if shrunk.shape[-2:] != tuple(size) else shrunk


def within(sampler: Sampler, free: Tensor | None, kept: Tensor) -> Sampler:
    """A sampler that leaves a latent what it is outside of a mask: there, every estimate of the clean picture is `kept`.

    Args:
        free: (1, 1, H, W) in 0..1, or None for no mask. `kept`: (B, C, H, W), clean.

    Source: the WebUI's denoiser does the same with its own mask.
    """
    if free is None:
        return sampler
    kept = kept.clone()  # a sampler may write into what it began with

    def sample(model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], callback: Callable[[dict[str, Any]], None]) -> Tensor:
        def masked(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            return torch.lerp(kept, model(x, sigma, **extra), free)

        return sampler(masked, x, sigmas, extra_args=extra_args, callback=callback)

    return sample


def outside(made: Image.Image, source: Source, upscaler: str, device: torch.device, deal: Deal = map) -> Image.Image:
    """A result with the plain enlargement of its picture where a mask keeps it; the result itself where there is no mask.

    Args:
        upscaler, deal: see `enlarger`; Lanczos where it enlarges latents.
    """
    if source.mask is None:
        return made
    plain = enlarger(upscaler, device, deal) or enlarger("lanczos", device)
    assert plain is not None
    own = to_picture(source.picture[0]).crop((0, 0, *source.pixels))
    mask = Image.fromarray((source.mask[0, 0] * 255).round().to(torch.uint8).cpu().numpy()).crop((0, 0, *source.pixels))
    return Image.composite(made, plain(own, made.size), mask.resize(made.size, Image.Resampling.BILINEAR))
