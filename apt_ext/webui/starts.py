"""What the phases of a job start from and end at: the sizes, and the latents of the first pass or of the given pictures."""

from __future__ import annotations

from typing import Any

import torch
from modules import images, shared
from torch import Tensor

from apt_ext.core.phases import Size
from apt_ext.webui import vae
from apt_ext.webui.resizing import resized
from apt_ext.webui.settings import native_side
from apt_ext.webui.sizes import FACTOR, hires_sizes, picture_sizes

__all__ = ["hires_base", "hires_cut", "hires_sizes_of", "picture_base", "picture_sizes_of"]


def hires_sizes_of(p: Any) -> tuple[Size, Size]:
    """Of a hires pass: see `hires_sizes`."""
    return hires_sizes((p.width, p.height), (p.hr_upscale_to_x, p.hr_upscale_to_y), (p.truncate_x, p.truncate_y))


def picture_sizes_of(p: Any) -> tuple[Size, Size]:
    """Of an img2img pass: see `picture_sizes`."""
    given = (p.paste_to[2], p.paste_to[3]) if p.paste_to else p.init_images[0].size
    asked = (p.init_latent.shape[-1] * FACTOR, p.init_latent.shape[-2] * FACTOR)
    return picture_sizes(given, asked, 2 if p.paste_to else p.resize_mode, native_side(shared.sd_model))


def hires_cut(p: Any, have: Size) -> tuple[int, int]:
    """Latent pixels (rows, columns) to cut off the first pass, of size `have`, for the target's aspect."""
    whole = (p.hr_upscale_to_y // FACTOR, p.hr_upscale_to_x // FACTOR)
    return round(p.truncate_y * have[0] / whole[0]), round(p.truncate_x * have[1] / whole[1])


def hires_base(p: Any, z: Tensor, x: Tensor) -> Tensor:
    """The first pass's own latents, cut to the target's aspect as the host cuts the enlarged ones, and like x in type and place."""
    top, left = hires_cut(p, (z.shape[-2], z.shape[-1]))
    return z[:, :, top // 2 : z.shape[-2] - (top + 1) // 2, left // 2 : z.shape[-1] - (left + 1) // 2].to(x)


def picture_base(p: Any, x: Tensor) -> Tensor:
    """The given pictures' latents at their own size."""
    start, target = picture_sizes_of(p)
    if start == target:
        return x
    if p.nmask is not None and p.inpainting_fill != 1:
        # The host has filled the mask in the enlarged latent; only there is the filling to be had.
        return resized(x, start, "bicubic")
    latents = []
    for picture in p.init_images:
        flat = images.flatten(picture, shared.opts.img2img_background_color)
        if p.paste_to:
            left, top, width, height = p.paste_to
            flat = flat.crop((left, top, left + width, top + height))
        mode = 2 if p.paste_to else 0 if p.resize_mode == 3 else p.resize_mode
        latents.append(vae.encode_picture(shared.sd_model, flat, start, mode))
    z = torch.cat(latents).to(x)
    return z.expand(x.shape[0], -1, -1, -1).clone() if z.shape[0] == 1 else z
