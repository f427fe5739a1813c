"""How a picture is enlarged before a phase, in the host's names and in APT's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from modules import images, shared
from PIL import Image

from apt_ext.core.borders import NOWHERE, margin
from apt_ext.core.types import Around
from apt_ext.options import UPSCALERS

__all__ = ["LATENT", "NONE", "choices", "enlarge_picture", "hires_upscaler", "host_name", "resolved"]

LATENT = "latent"
REACH = 32  # pixels of the other side that an upscaler sees beyond a seamless picture's border
NONE = "None"  # the host's name for no upscaler, where it resizes by Lanczos
LATENT_ON_HOST = "Latent (bicubic)"  # what enlarging latents comes to here, whichever Latent upscaler is chosen


def _of_host() -> list[str]:
    return [str(one.name) for one in shared.sd_upscalers if one.name != NONE]


def choices() -> list[str]:
    """What the page offers: APT's own, and the host's image upscalers that are no filter of APT's."""
    return [*UPSCALERS, *(name for name in _of_host() if name.lower() not in UPSCALERS)]


def resolved(name: str) -> str:
    """A name as the page, the API or an infotext has it -> "latent", "lanczos", "bicubic" or the name of one of the host's image upscalers.

    Raises:
        ValueError: for a name that neither knows.
    """
    if name in shared.latent_upscale_modes:
        return LATENT
    if name.lower() in UPSCALERS:
        return name.lower()
    if name == NONE:
        return UPSCALERS[0]
    found = next((known for known in _of_host() if known.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"upscaler {name!r} does not exist; use one of {', '.join(choices())}")
    return found


def hires_upscaler(p: Any, own: str) -> str:
    """What enlarges in a hires pass: the host's field, and where that says "None" or nothing was chosen, APT's own.

    Raises:
        ValueError: see `resolved`.
    """
    return resolved(own if p.hr_upscaler in (None, "", NONE) else p.hr_upscaler)


def host_name(name: str) -> str:
    """What the host's field "Upscaler" has to say for an upscaler; "None" where it has no such entry and APT's own decides.

    Raises:
        ValueError: see `resolved`.
    """
    known = resolved(name)
    if known == LATENT:
        return LATENT_ON_HOST if LATENT_ON_HOST in shared.latent_upscale_modes else str(shared.latent_upscale_default_mode)
    return next((one for one in _of_host() if one.lower() == known.lower()), NONE)


def _fitted(size: tuple[int, int], asked: tuple[int, int], mode: int) -> tuple[int, int]:
    """(width, height) that the host resizes a picture to before it cuts (mode 1) or fills up (mode 2)."""
    if mode == 0:
        return asked
    by_height = (size[0] * asked[1] // size[1], asked[1])
    by_width = (asked[0], size[1] * asked[0] // size[0])
    wider = asked[0] * size[1] > asked[1] * size[0]
    return (by_width if wider else by_height) if mode == 1 else (by_height if wider else by_width)


def enlarge_picture(picture: Image.Image, size: tuple[int, int], name: str, mode: int = 0, around: Around = NOWHERE) -> Image.Image:
    """A picture at (width, height), as the host's resize mode has it.

    Args:
        name: from `resolved`, but not "latent". `mode`: 0 stretches, 1 fills and cuts, 2 fits and fills up.
        around: the axes along which it is seamless: its other side lies beside it while it is enlarged, so that its edges go on to meet.
    """
    if around != NOWHERE:
        (left, before), (top, above) = (margin(have, want, on, REACH) for have, want, on in zip(picture.size, size, reversed(around), strict=True))
        wide = Image.fromarray(np.pad(np.asarray(picture.convert("RGB")), ((top, top), (left, left), (0, 0)), mode="wrap"))
        made = enlarge_picture(wide, (size[0] + 2 * before, size[1] + 2 * above), name)
        return made.crop((before, above, before + size[0], above + size[1]))
    if name == "bicubic":  # which the host has not
        picture = picture.resize(_fitted(picture.size, size, mode), Image.Resampling.BICUBIC)
    # Without a name the host would take its own setting for img2img.
    return images.resize_image(mode, picture, size[0], size[1], upscaler_name=NONE if name in UPSCALERS else name)
