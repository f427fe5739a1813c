"""What lies beyond the border of a latent: its mirror image, zeros, or the picture's other side, where it is seamless and goes on there."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.types import Around
from apt_ext.options import FILLS

__all__ = ["FILLS", "NOWHERE", "extend", "fill_around", "folded", "goes_around", "interpolate", "margin", "stretches"]

NOWHERE = Around(False, False)
_AROUND = {Around(True, True): "around", Around(True, False): "around rows", Around(False, True): "around columns"}


def fill_around(fill: str, around: Around) -> str:
    """What lies beyond the border where the picture goes on at its other side along some axes; what does not go on is mirrored then."""
    return _AROUND.get(around, fill)


def goes_around(fill: str) -> Around:
    """Along which axes a fill goes on at the other side.

    Raises:
        ValueError: for a fill that does not exist.
    """
    found = next((around for around, name in _AROUND.items() if name == fill), NOWHERE)
    if found == NOWHERE and fill not in FILLS:
        raise ValueError(f"fill {fill!r} does not exist; use one of {', '.join(FILLS)}")
    return found


def folded(start: int, stop: int, size: int, around: bool, device: torch.device) -> Tensor:
    """Indices start..stop-1 brought back into 0..size-1: from the other side, or mirrored at the first and the last pixel, for a reach of any length."""
    if around:
        return torch.arange(start, stop, device=device) % size
    period = max(1, 2 * size - 2)
    index = torch.arange(start, stop, device=device) % period
    return torch.where(index < size, index, period - index)


def stretches(start: int, length: int, size: int, around: bool) -> list[tuple[slice, slice]]:
    """Where `length` <= `size` pixels from `start` on lie along an axis of `size`: (slice of the axis, slice of them), what lies beyond left out."""
    if not around:
        first, last = max(0, start), min(size, start + length)
        return [(slice(first, last), slice(first - start, last - start))] if first < last else []
    start %= size
    own = min(length, size - start)
    return [(slice(start, start + own), slice(0, own)), *([(slice(0, length - own), slice(own, length))] if own < length else [])]


def extend(x: Tensor, top: int, left: int, bottom: int, right: int, fill: str) -> Tensor:
    """(..., H, W) -> (..., top + H + bottom, left + W + right): the latent with what lies around it.

    Unlike `torch.nn.functional.pad`, it may reach further than the latent is long.

    Args:
        fill: "reflect", "zero", or one of `fill_around`.

    Raises:
        ValueError: for a fill that does not exist.
    """
    around = goes_around(fill)
    if not (top or left or bottom or right):
        return x
    reach = (left, right, top, bottom)
    if fill == "zero":
        return F.pad(x, reach)
    height, width = x.shape[-2:]
    if fill == "reflect" and max(left, right) < width and max(top, bottom) < height and x.ndim == 4 and x.dtype == torch.float32:
        return F.pad(x, reach, "reflect")  # the same values, many times faster on a CPU
    rows, columns = folded(-top, height + bottom, height, around.rows, x.device), folded(-left, width + right, width, around.columns, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def margin(size: int, wanted: int, around: bool, least: int) -> tuple[int, int]:
    """Pixels to lay beyond an axis before it is resized, and what they are afterwards, whole numbers both; none where it does not go on."""
    if not around:
        return 0, 0
    unit = size // math.gcd(size, wanted)
    before = unit * math.ceil(least / unit)
    return before, before * wanted // size


def interpolate(x: Tensor, size: tuple[int, int], around: Around = NOWHERE) -> Tensor:
    """(B, C, H, W) enlarged bicubically to (rows, columns), as `torch.nn.functional.interpolate` does it (a = -0.75, no anti-aliasing).

    Args:
        around: the axes along which the picture goes on at its other side.
    """
    (top, above), (left, before) = (margin(have, want, on, 3) for have, want, on in zip(x.shape[-2:], size, around, strict=True))
    wide = extend(x, top, left, top, left, fill_around("reflect", around))
    made = F.interpolate(wide, size=(size[0] + 2 * above, size[1] + 2 * before), mode="bicubic")
    return made[..., above : above + size[0], before : before + size[1]]
