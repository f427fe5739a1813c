"""Decoding and encoding in tiles, so that memory does not grow with the picture and no edge of a tile shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import product

import torch
from torch import Tensor

from apt_ext.core.types import Deal
from apt_ext.core.windows import Window, gather_windows, place_windows

__all__ = ["cut_tiles", "map_tiles"]


def _blends(spans: Sequence[tuple[int, int]], trim: int, ramp: int, device: torch.device) -> list[Tensor]:
    """Weights along an axis of tiles (start, length): nothing over the outermost `trim` pixels, which saw the tile's edge, then rising over
    `ramp`; whole at the picture's border. Those of all tiles sum to one at every pixel, so that nothing as large as the picture is needed to divide by.
    """
    end = spans[-1][0] + spans[-1][1]

    def along(start: int, length: int) -> Tensor:
        x = torch.arange(length, dtype=torch.float32, device=device) + 0.5
        ahead = torch.ones_like(x) if start <= 0 else ((x - trim) / ramp).clamp(0, 1)
        behind = torch.ones_like(x) if start + length >= end else ((length - x - trim) / ramp).clamp(0, 1)
        return torch.minimum(ahead, behind)

    weights, total = [along(*span) for span in spans], torch.zeros(end, device=device)
    for (start, length), weight in zip(spans, weights, strict=True):
        total[start : start + length] += weight
    return [weight / total[start : start + length] for (start, length), weight in zip(spans, weights, strict=True)]


def _even_tiles(length: int, tile: int, halo: float) -> list[tuple[int, int]]:
    """(start, length) of the fewest tiles along an axis, no longer than they have to be for their overlap of `halo`.

    The unit is a pixel of the smaller side, so that tiles begin and end on whole pixels of both.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - halo) / (tile - halo))
    side = min(tile, math.ceil((length + (count - 1) * halo) / count))
    return [(k * (length - side) // (count - 1), side) for k in range(count)]


def _cut(size: tuple[int, int], step: int, tile: int, halo: int) -> list[list[tuple[int, int]]]:
    """(start, length) of the tiles along both axes, in pixels of the smaller side, of which one is `step` of x's."""
    if not 0 < halo <= tile // 2:
        raise ValueError(f"halo {halo} does not fit into tiles of {tile}; use 1 to {tile // 2}")
    if tile < step or size[0] % step or size[1] % step:
        raise ValueError(f"{size[0]} x {size[1]} pixels in tiles of {tile} do not divide by {step}; pad the picture and use larger tiles")
    return [_even_tiles(length // step, tile // step, halo / step) for length in size]


def cut_tiles(x: Tensor, factor: Fraction | int, *, tile: int, halo: int) -> Iterator[Callable[[], Tensor]]:
    """What `map_tiles` gives its function, tile by tile: calls that cut them out.

    Raises:
        ValueError: see `map_tiles`.
    """
    step = Fraction(factor).denominator
    rows, columns = _cut((x.shape[-2], x.shape[-1]), step, tile, halo)
    for (top, height), (left, width) in product(rows, columns):
        yield partial(gather_windows, x, [Window(top * step, left * step, height * step, width * step)])


def map_tiles(function: Callable[[Tensor], Tensor], x: Tensor, factor: Fraction | int, *, tile: int, halo: int, deal: Deal = map) -> Tensor:
    """Apply an encoder or a decoder tile by tile.

    Args:
        function: (B, C, h, w) -> (B, C', h * factor, w * factor).
        x: (B, C, H, W).
        factor: 8 for Stable Diffusion's decoder, Fraction(1, 8) for its encoder. x's sides times the factor are whole.
        tile: the longest side of a tile in x's pixels; a picture no larger is done at once.
        halo: overlap of neighbouring tiles in x's pixels. A third of it is thrown away on each side, in the middle the tiles fade into each other.
        deal: who runs the function on them, see `ViewCalls`.

    Returns:
        (B, C', H * factor, W * factor), float32.

    Raises:
        ValueError: where the halo does not fit into the tile, or the picture does not divide by the factor.
    """
    factor = Fraction(factor)
    size = (x.shape[-2], x.shape[-1])
    if max(size) <= tile:
        return next(deal(function, [x])).float()
    step = factor.denominator
    rows, columns = _cut(size, step, tile, halo)
    spans = [[(int(start * step * factor), int(side * step * factor)) for start, side in tiles] for tiles in (rows, columns)]
    trim = int(halo * factor) // 3
    down, across = (_blends(axis, trim, max(1, int(halo * factor) - 2 * trim), x.device) for axis in spans)
    value: Tensor | None = None

    def run(cut: Callable[[], Tensor]) -> Tensor:
        return function(cut()).float()

    cuts, places = list(cut_tiles(x, factor, tile=tile, halo=halo)), product(range(len(rows)), range(len(columns)))
    for (i, j), out in zip(places, deal(run, cuts), strict=True):
        if value is None:
            value = out.new_zeros((x.shape[0], out.shape[1], int(size[0] * factor), int(size[1] * factor)))
        (top, height), (left, width) = spans[0][i], spans[1][j]
        place_windows(value, out, [Window(top, left, height, width)], down[i][:, None] * across[j][None, :])
    assert value is not None
    return value
