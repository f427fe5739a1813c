"""Decoding and encoding in tiles, so that memory does not grow with the picture and no edge of a tile shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from apt_ext.core.windows import Window, gather_windows, place_windows

__all__ = ["map_tiles"]


def _tile_weights(tile: Window, size: tuple[int, int], trim: int, ramp: int, device: torch.device) -> Tensor:
    """Weights of a tile: nothing over the outermost `trim` pixels, which saw its edge, then rising to one over `ramp`; whole at the picture's border."""

    def along(start: int, length: int, end: int) -> Tensor:
        x = torch.arange(length, dtype=torch.float32, device=device) + 0.5
        ahead = torch.ones_like(x) if start <= 0 else ((x - trim) / ramp).clamp(0, 1)
        behind = torch.ones_like(x) if start + length >= end else ((length - x - trim) / ramp).clamp(0, 1)
        return torch.minimum(ahead, behind)

    return along(tile.top, tile.height, size[0])[:, None] * along(tile.left, tile.width, size[1])[None, :]


def _even_tiles(length: int, tile: int, halo: float) -> list[tuple[int, int]]:
    """(start, length) of the fewest tiles along an axis, no longer than they have to be for their overlap of `halo`.

    The unit is a pixel of the smaller side, so that tiles begin and end on whole pixels of both.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - halo) / (tile - halo))
    side = min(tile, math.ceil((length + (count - 1) * halo) / count))
    return [(k * (length - side) // (count - 1), side) for k in range(count)]


def map_tiles(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    factor: Fraction | int,
    *,
    tile: int,
    halo: int,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Apply an encoder or a decoder tile by tile.

    Args:
        function: (B, C, h, w) -> (B, C', h * factor, w * factor).
        x: (B, C, H, W).
        factor: 8 for Stable Diffusion's decoder, Fraction(1, 8) for its encoder. x's sides times the factor are whole.
        tile: the longest side of a tile in x's pixels; a picture no larger is done at once.
        halo: overlap of neighbouring tiles in x's pixels. A third of it is thrown away on each side, in the middle the tiles fade into each other.
        on_tile: told (done, total); may raise to interrupt.

    Returns:
        (B, C', H * factor, W * factor), float32.

    Raises:
        ValueError: where the halo does not fit into the tile, or the picture does not divide by the factor.
    """
    factor = Fraction(factor)
    size = (x.shape[-2], x.shape[-1])
    if max(size) <= tile:
        out = function(x).float()
        on_tile(1, 1)
        return out
    if not 0 < halo <= tile // 2:
        raise ValueError(f"halo {halo} does not fit into tiles of {tile}; use 1 to {tile // 2}")
    step = factor.denominator
    if tile < step or size[0] % step or size[1] % step:
        raise ValueError(f"{size[0]} x {size[1]} pixels in tiles of {tile} do not divide by {step}; pad the picture and use larger tiles")
    rows, columns = (_even_tiles(length // step, tile // step, halo / step) for length in size)
    windows = [Window(top * step, left * step, height * step, width * step) for top, height in rows for left, width in columns]
    value: Tensor
    count: Tensor
    for done, window in enumerate(windows, 1):
        out = function(gather_windows(x, [window])).float()
        placed = Window(*(int(v * factor) for v in window))
        if done == 1:
            value = out.new_zeros((x.shape[0], out.shape[1], int(size[0] * factor), int(size[1] * factor)))
            count = out.new_zeros((1, 1, *value.shape[-2:]))
        trim = int(halo * factor) // 3
        weight = _tile_weights(placed, (value.shape[-2], value.shape[-1]), trim, max(1, int(halo * factor) - 2 * trim), out.device)
        place_windows(value, out, [placed], weight)
        place_windows(count, torch.ones_like(weight)[None, None], [placed], weight)
        on_tile(done, len(windows))
    return value.div_(count)
