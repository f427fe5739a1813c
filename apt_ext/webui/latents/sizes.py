"""Sizes that the host's own fields mean, in latent pixels."""

from __future__ import annotations

import math

from apt_ext.core.types import Size
from apt_ext.webui.model import FACTOR

__all__ = ["hires_cut", "hires_enlarged", "hires_sizes", "picture_sizes"]


def hires_enlarged(first: tuple[int, int], asked: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """How the host's "Resize to" of another aspect is done: (size it enlarges to, latent pixels it then cuts off), both (width, height).

    Args:
        first, asked: (width, height) in pixels.
    """
    wider = first[0] / first[1] < asked[0] / asked[1]
    enlarged = (asked[0], asked[0] * first[1] // first[0]) if wider else (asked[1] * first[0] // first[1], asked[1])
    return enlarged, ((enlarged[0] - asked[0]) // FACTOR, (enlarged[1] - asked[1]) // FACTOR)


def hires_cut(have: Size, enlarged: tuple[int, int], truncate: tuple[int, int]) -> Size:
    """Latent pixels (rows, columns) to cut off a first pass of size `have`, for the aspect of the target. The others as in `hires_sizes`."""
    whole = (enlarged[1] // FACTOR, enlarged[0] // FACTOR)
    return Size(round(truncate[1] * have[0] / whole[0]), round(truncate[0] * have[1] / whole[1]))


def hires_sizes(first: tuple[int, int], enlarged: tuple[int, int], truncate: tuple[int, int] = (0, 0)) -> tuple[Size, Size]:
    """(start, target) of a hires job.

    Args:
        first: (width, height) of the first pass in pixels. `enlarged`: of the picture that the host enlarges it to.
        truncate: (columns, rows) of latent pixels that the host then cuts off.
    """
    have = Size(first[1] // FACTOR, first[0] // FACTOR)
    cut = hires_cut(have, enlarged, truncate)
    target = Size(enlarged[1] // FACTOR - truncate[1], enlarged[0] // FACTOR - truncate[0])
    return Size(have.rows - cut.rows, have.columns - cut.columns), target


def picture_sizes(given: tuple[int, int], asked: tuple[int, int], resize_mode: int, native: int) -> tuple[Size, Size]:
    """(start, target) of an img2img job.

    The start has the target's aspect. It is as large as the part of the picture that the host's resize mode uses, but no smaller than what
    the model composes at, and no larger than the target.

    Args:
        given, asked: (width, height) in pixels. `resize_mode`: the host's, 0 to 3. `native`: the model's native side in pixels.
    """
    target = Size(asked[1] // FACTOR, asked[0] // FACTOR)
    ratios = (given[0] / asked[0], given[1] / asked[1])
    covered = min(ratios) if resize_mode == 1 else max(ratios) if resize_mode == 2 else math.sqrt(ratios[0] * ratios[1])
    part = min(1.0, max(covered, native / math.sqrt(asked[0] * asked[1])))
    return Size(max(1, round(target.rows * part)), max(1, round(target.columns * part))), target
