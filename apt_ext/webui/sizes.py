"""Sizes that the host's own fields mean, in latent pixels."""

from __future__ import annotations

import math

from apt_ext.core.phases import Size

__all__ = ["FACTOR", "hires_sizes", "picture_sizes"]

FACTOR = 8  # pixels per latent pixel


def hires_sizes(first: tuple[int, int], enlarged: tuple[int, int], truncate: tuple[int, int] = (0, 0)) -> tuple[Size, Size]:
    """(start, target) of a hires job.

    Args:
        first: (width, height) of the first pass in pixels. `enlarged`: of the picture that the host enlarges it to.
        truncate: (columns, rows) of latent pixels that the host then cuts off.
    """
    return (first[1] // FACTOR, first[0] // FACTOR), (enlarged[1] // FACTOR - truncate[1], enlarged[0] // FACTOR - truncate[0])


def picture_sizes(given: tuple[int, int], asked: tuple[int, int], resize_mode: int, native: int) -> tuple[Size, Size]:
    """(start, target) of an img2img job.

    The start has the target's aspect. It is as large as the part of the picture that the host's resize mode uses, but no smaller than what
    the model composes at, and no larger than the target.

    Args:
        given, asked: (width, height) in pixels. `resize_mode`: the host's, 0 to 3. `native`: the model's native side in pixels.
    """
    target = (asked[1] // FACTOR, asked[0] // FACTOR)
    ratios = (given[0] / asked[0], given[1] / asked[1])
    covered = min(ratios) if resize_mode == 1 else max(ratios) if resize_mode == 2 else math.sqrt(ratios[0] * ratios[1])
    part = min(1.0, max(covered, native / math.sqrt(asked[0] * asked[1])))
    return (max(1, round(target[0] * part)), max(1, round(target[1] * part))), target
