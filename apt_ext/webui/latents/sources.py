"""What the phases of a job start from: the sizes, the base latents, and the pictures whose own pixels the first phase enlarges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from modules import images, shared
from PIL import Image
from torch import Tensor

from apt_ext.core.borders import NOWHERE
from apt_ext.core.types import Around, Size, size_of
from apt_ext.webui.hosts.checkpoint import native_side
from apt_ext.webui.latents import vae
from apt_ext.webui.latents.resizing import resized
from apt_ext.webui.latents.sizes import hires_cut, hires_sizes, picture_sizes
from apt_ext.webui.latents.upscalers import LATENT, enlarge_picture
from apt_ext.webui.model import FACTOR

__all__ = ["Start", "hires_cut_of", "hires_sizes_of", "hires_start", "no_larger", "picture_sizes_of", "picture_start"]

ORIGINAL = 1  # "Masked content" of the host: what the picture has there


@dataclass(frozen=True)
class Start:
    """Where the phases of one batch begin.

    Attributes:
        base: (B, C, h, w) clean latents of the pictures at their own size; the reference of the statistics.
        enlarged: (rows, columns) -> (B, C, rows, columns), what the first phase of that size begins with.
        pictures: B pictures at the base's size, or none where nobody wants them.
    """

    base: Tensor
    enlarged: Callable[[Size], Tensor]
    pictures: list[Image.Image]


def hires_sizes_of(p: Any) -> tuple[Size, Size]:
    """Of a hires pass: see `hires_sizes`. The gallery's button brings a first pass that was made before, of any size."""
    first = (p.width, p.height) if p.firstpass_image is None else p.firstpass_image.size
    return hires_sizes(first, (p.hr_upscale_to_x, p.hr_upscale_to_y), (p.truncate_x, p.truncate_y))


def picture_sizes_of(p: Any) -> tuple[Size, Size]:
    """Of an img2img pass: see `picture_sizes`."""
    given = (p.paste_to[2], p.paste_to[3]) if p.paste_to else p.init_images[0].size
    asked = (p.init_latent.shape[-1] * FACTOR, p.init_latent.shape[-2] * FACTOR)
    return picture_sizes(given, asked, 2 if p.paste_to else p.resize_mode, native_side(shared.sd_model))


def no_larger(p: Any, target: Size) -> bool:
    """Whether an img2img pass's target is no larger than what it is given."""
    width, height = p.paste_to[2:] if p.paste_to else p.init_images[0].size
    return target.columns * FACTOR <= width and target.rows * FACTOR <= height


def hires_cut_of(p: Any, have: Size) -> Size:
    """Of a hires pass: see `hires_cut`."""
    return hires_cut(have, (p.hr_upscale_to_x, p.hr_upscale_to_y), (p.truncate_x, p.truncate_y))


def hires_start(p: Any, z: Tensor, pictures: Sequence[Image.Image], x: Tensor, upscaler: str, wanted: bool, around: Around) -> Start:
    """Of a hires pass: the first pass, cut to the target's aspect as the host cuts its enlarged picture.

    Args:
        z: the first pass's latents. `pictures`: they decoded, if the host has done so already.
        x: the host's own start, for its type and place. `upscaler`: from `upscalers.resolved`.
        wanted: whether the pictures are asked for even where only latents are enlarged. `around`: the axes along which they are seamless.
    """
    top, left = hires_cut_of(p, size_of(z))
    rows, columns = slice(top // 2, z.shape[-2] - (top + 1) // 2), slice(left // 2, z.shape[-1] - (left + 1) // 2)
    base = z[:, :, rows, columns].to(x)
    if upscaler == LATENT and not wanted:
        return Start(base, partial(vae.enlarge_latent, base, around=around), [])
    whole = pictures or vae.pictures_of(shared.sd_model, z)
    box = (columns.start * FACTOR, rows.start * FACTOR, columns.stop * FACTOR, rows.stop * FACTOR)
    cut = [picture if not top and not left else picture.crop(box) for picture in whole]
    return Start(base, partial(vae.enlarge_latent, base, around=around) if upscaler == LATENT else _enlarging(base, cut, 0, upscaler, around), cut)


def _given_pictures(p: Any) -> list[Image.Image]:
    """The pictures of an img2img job at their own size: flat, and of each only the part that is worked on."""
    flat = [images.flatten(picture, shared.opts.img2img_background_color) for picture in p.init_images]
    if not p.paste_to:
        return flat
    left, top, width, height = p.paste_to
    return [picture.crop((left, top, left + width, top + height)) for picture in flat]


def picture_start(p: Any, x: Tensor, upscaler: str, around: Around) -> Start:
    """Of an img2img pass: the given pictures.

    Args:
        x: (B, C, H, W) what the host would start from. `upscaler`: from `upscalers.resolved`. `around`: the axes along which they are seamless.
    """
    start, target = picture_sizes_of(p)
    # The host's fit for "only masked"; "latent upscale" stretches too.
    mode = 2 if p.paste_to else 0 if p.resize_mode == 3 else int(p.resize_mode)
    given = _given_pictures(p)
    small = [enlarge_picture(picture, (start[1] * FACTOR, start[0] * FACTOR), "lanczos", mode, around) for picture in given]
    if p.nmask is not None and p.inpainting_fill != ORIGINAL:
        # The host has filled the mask in the enlarged latent; only there is the filling to be had.
        return Start(resized(x, start, "bicubic"), partial(resized, x, mode="bicubic"), _batch(small, len(x)))
    same = start == target and around == NOWHERE
    base = x if same else _latents(small, x)
    if upscaler == LATENT or start == target:
        return Start(base, partial(vae.enlarge_latent, base, around=around), _batch(small, len(x)))
    through_pixels, ready = _enlarging(base, given, mode, upscaler, around), around == NOWHERE and _is_host_s_own(p, upscaler)
    return Start(base, lambda size: x if ready and size == target else through_pixels(size), _batch(small, len(x)))


def _is_host_s_own(p: Any, upscaler: str) -> bool:
    """Whether what the host would start from is these pictures enlarged in the same way; encoding them once more would only take time."""
    own = shared.opts.upscaler_for_img2img or "None"
    return p.resize_mode != 3 and (own == upscaler or (upscaler == "lanczos" and own in ("None", "Lanczos")))


def _batch(pictures: list[Image.Image], count: int) -> list[Image.Image]:
    return pictures * count if len(pictures) == 1 else pictures


def _latents(pictures: Sequence[Image.Image], like: Tensor) -> Tensor:
    """(B, C, h, w) of pictures, one by one; a single one serves a whole batch."""
    z = torch.cat([vae.encode(shared.sd_model, [picture]) for picture in pictures]).to(like)
    return z.expand(len(like), -1, -1, -1).clone() if len(z) == 1 else z


def _enlarging(base: Tensor, pictures: Sequence[Image.Image], mode: int, upscaler: str, around: Around) -> Callable[[Size], Tensor]:
    """Pictures by their pixels: size -> their latents at that size; at the base's own, the base."""

    def enlarged(size: Size) -> Tensor:
        if tuple(base.shape[-2:]) == tuple(size):
            return base
        return _latents([enlarge_picture(picture, (size[1] * FACTOR, size[0] * FACTOR), upscaler, mode, around) for picture in pictures], base)

    return enlarged
