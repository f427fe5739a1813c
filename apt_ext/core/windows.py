"""Local windows: where a model of a fixed size looks at a larger latent, and how its answers are put together again.

Positions are data (a list of `Window`), drawn for one step at a time from a seed and the step's number, so that a step can be
repeated, skipped or run in any batch size and still sees the same windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apt_ext.core.borders import NOWHERE, extend, folded, goes_around, stretches
from apt_ext.core.types import Around
from apt_ext.options import BORDERS

__all__ = ["BORDERS", "Window", "axis_starts", "cover", "draw_starts", "draw_windows", "feather_weights", "gather_windows", "place_windows"]


class Window(NamedTuple):
    """A rectangle in latent pixels. It may reach over the border of the latent, so `top` and `left` may be negative."""

    top: int
    left: int
    height: int
    width: int


def axis_starts(size: int, window: int, overlap: float, border: str = "inside", shift: float = 0.5) -> list[int]:
    """First pixels of the windows along one axis; together they cover every pixel, whatever the arguments.

    Args:
        size: pixels along the axis. Where the window is longer, it is cut to `size`.
        window: pixels of a window.
        overlap: share of a window that the next one covers again, 0 to 0.75.
        border: "inside" keeps the outer windows flush with the border and spreads the others evenly between them;
            "over" lays a grid of constant stride that begins up to one stride before the border; "around", for an axis that goes on at
            its other side, spreads two windows or more evenly round it, so that each one's edges lie inside another.
        shift: 0 to 1, the jitter. Inside, the inner windows move together from one end of their play (0) to the other (1),
            0.5 being the even spread; over the border, the whole grid moves by `shift` strides towards the start, and around away from it.

    Returns:
        Ascending first pixels; negative ones only with "over", ends beyond `size` with "over" and "around".

    Example:
        >>> axis_starts(150, 64, overlap=0.5)  # the inner windows spread evenly between the outer ones
        [0, 28, 57, 86]
        >>> axis_starts(150, 64, overlap=0.5, shift=1)  # moved as far as everything stays covered
        [0, 63, 86, 86]
        >>> axis_starts(160, 64, overlap=0.5, border="over", shift=0.25)
        [-8, 24, 56, 88, 120]

    Source: MultiDiffusion (Bar-Tal et al., 2023), section 4; the jitter is DemoFusion's (Du et al., 2024), section 3.3, the shifted
    grid without overlap SpotDiffusion's (Frolov et al., 2024).
    """
    window = min(window, size)
    stride = max(1, math.floor(window * (1 - overlap)))
    if border == "over":
        first = -min(stride - 1, math.floor(shift * stride))
        return list(range(first, max(first + 1, size - window + stride), stride))
    if border == "around":
        count = max(2, math.ceil(size / stride))
        return [i * size // count + math.floor(shift * size / count) for i in range(count)]
    steps = math.ceil((size - window) / stride)
    if steps == 0:
        return [0]
    starts = [i * (size - window) // steps for i in range(steps + 1)]
    play = window - max(b - a for a, b in pairwise(starts))
    offset = round((2 * shift - 1) * play)
    # The inner windows move as one, so the gaps between them stay; only the first and the last gap change, by at most `play`.
    inner = [min(max(start + offset, 0), size - window) for start in starts[1:-1]]
    return [0, *inner, size - window]


def _step_seed(seed: int, step: int) -> int:
    """One seed per (seed, step). The two are multiplied apart, so neighbouring seeds do not share their steps' draws."""
    return (seed * 0x9E3779B1 + step * 0x85EBCA77 + 0x165667B1) % 2**63


def draw_starts(
    step: int,
    *,
    size: tuple[int, int],
    window: tuple[int, int],
    overlap: float = 0.5,
    jitter: float = 1.0,
    border: str = "inside",
    seed: int = 0,
    around: Around = NOWHERE,
) -> tuple[list[int], list[int]]:
    """First rows and first columns of one step's windows, which stand on the grid of the two.

    Args:
        step: number of the step, which the jitter depends on.
        size: (rows, columns) of the latent.
        window: (rows, columns) of a window, in latent pixels.
        overlap: share of a window that its neighbour covers again, 0 to 0.75.
        jitter: 0 to 1, share of the greatest shift that keeps everything covered; drawn anew for every step.
        border: "inside" or "over", see `axis_starts`.
        seed: of the jitter. No global random state is read or changed.
        around: the axes along which the latent goes on at its other side; there, windows do too, whatever the border.

    Returns:
        (rows, columns); windows there cover every pixel of the latent at least once. Kept inside the border, only the inner windows
        can move: with two windows along an axis nothing does.

    Raises:
        ValueError: for an argument out of range; the message quotes it.
    """
    if min(size) < 1 or min(window) < 1:
        raise ValueError(f"size {size} and window {window} must be at least 1 x 1 latent pixels")
    if not 0 <= overlap <= 0.75:
        raise ValueError(f"overlap {overlap} is out of range; use 0 to 0.75")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter {jitter} is out of range; use 0 to 1")
    if border not in BORDERS:
        raise ValueError(f"border {border!r} does not exist; use one of {', '.join(BORDERS)}")
    draw = torch.rand(2, generator=torch.Generator().manual_seed(_step_seed(seed, step)), dtype=torch.float64).tolist()
    borders = ["around" if on else border for on in around]
    shifts = [0.5 + jitter * (r - 0.5) if how == "inside" else jitter * r for r, how in zip(draw, borders, strict=True)]
    rows, columns = (axis_starts(n, w, overlap, how, s) for n, w, how, s in zip(size, window, borders, shifts, strict=True))
    return rows, columns


def draw_windows(step: int, *, size: tuple[int, int], window: tuple[int, int], **where: Any) -> list[Window]:
    """The local windows of one step, row by row; the arguments are those of `draw_starts`."""
    rows, columns = draw_starts(step, size=size, window=window, **where)
    height, width = min(window[0], size[0]), min(window[1], size[1])
    return [Window(top, left, height, width) for top in rows for left in columns]


def _places(window: Window, size: tuple[int, int], around: Around) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """The parts of a window that lie in the latent: (slices of the latent, slices of the window). Around the border there are several."""
    down = stretches(window.top, window.height, size[0], around[0])
    for (rows, own_rows), (columns, own_columns) in product(down, stretches(window.left, window.width, size[1], around[1])):
        yield (rows, columns), (own_rows, own_columns)


def cover(size: tuple[int, int], windows: Iterable[Window], around: Around = NOWHERE) -> Tensor:
    """How many windows see each pixel: (rows, columns) int64."""
    count = torch.zeros(size, dtype=torch.int64)
    for window in windows:
        for place, _ in _places(window, size, around):
            count[place] += 1
    return count


def _cut(x: Tensor, w: Window, fill: str) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w): one window. The whole latent must not be padded for it, or a step would cost calls times pixels."""
    height, width = x.shape[-2:]
    stop = (w.top + w.height, w.left + w.width)
    seen = x[..., max(0, w.top) : max(0, stop[0]), max(0, w.left) : max(0, stop[1])]
    if seen.shape[-2:] == (w.height, w.width):
        return seen
    if fill == "zero":
        return extend(seen, max(0, -w.top), max(0, -w.left), max(0, stop[0] - height), max(0, stop[1] - width), fill)
    around = goes_around(fill)
    rows, columns = folded(w.top, stop[0], height, around.rows, x.device), folded(w.left, stop[1], width, around.columns, x.device)
    return x[..., rows[:, None], columns]


def gather_windows(x: Tensor, windows: Sequence[Window], fill: str = "reflect") -> Tensor:
    """Cut windows of one common size out of a latent.

    Args:
        x: (B, C, H, W).
        windows: k windows, all of the same height h and width w.
        fill: what a window sees beyond the border, "reflect", "zero", or one of `fill_around`.

    Returns:
        (B * k, C, h, w), sample-major: the k windows of the first sample come first. So halves of a batch stay halves, whichever sample is in which.
    """
    goes_around(fill)
    return torch.stack([_cut(x, w, fill) for w in windows], dim=1).flatten(0, 1)


def place_windows(value: Tensor, patches: Tensor, windows: Sequence[Window], weight: Tensor | None = None, around: Around = NOWHERE) -> None:
    """Add windows back onto a canvas, in place; what reaches over the border is dropped, or added at the other side.

    Args:
        value: (B, C, H, W), added to. Windows are added one after the other, so that equal runs give equal sums on any device.
        patches: (B * k, C, h, w), as `gather_windows` orders them.
        windows: their k positions.
        weight: (h, w) multiplies every patch; ones when left out.
        around: the axes along which the canvas goes on at its other side.
    """
    size = (value.shape[-2], value.shape[-1])
    for patch, w in zip(patches.reshape(-1, len(windows), *patches.shape[1:]).unbind(1), windows, strict=True):
        if weight is not None:
            patch = patch * weight
        for (rows, columns), (own_rows, own_columns) in _places(w, size, around):
            value[..., rows, columns] += patch[..., own_rows, own_columns]


def feather_weights(height: int, width: int, feather: float, device: torch.device | None = None) -> Tensor:
    """(height, width) float32 weights that fall off linearly towards a window's edges, over `feather` (0 to 1) of half its length; never zero."""

    def ramp(n: int) -> Tensor:
        distance = torch.arange(n, dtype=torch.float32, device=device) + 0.5
        return (torch.minimum(distance, n - distance) / max(0.5, feather * n / 2)).clamp(max=1)

    return ramp(height)[:, None] * ramp(width)[None, :]
