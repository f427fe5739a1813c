"""Hints: pictures in pixels that go with a latent (edges, depth, the enlarged picture itself), as each view of the latent has to see them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from apt_ext.core.borders import goes_around
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import DilatedGrid
from apt_ext.core.windows import Window

__all__ = ["is_drawing", "resized_hint", "view_hints"]


def is_drawing(hint: Tensor) -> bool:
    """Whether a hint is black and white alone, such as edges and scribbles. A mean of its pixels would fade thin lines away."""
    return bool(((hint == 0) | (hint == 1)).all())


def _shrunk(hint: Tensor, size: tuple[int, int], drawing: bool) -> Tensor:
    pool = functional.adaptive_max_pool2d if drawing else functional.adaptive_avg_pool2d
    return pool(hint, size)


def resized_hint(hint: Tensor, size: tuple[int, int], drawing: bool = False) -> Tensor:
    """A hint at another size.

    Args:
        hint: (N, C, H, W). `size`: (rows, columns) in pixels. `drawing`: whether lines keep their full strength where it shrinks.

    Returns:
        (N, C, *size); the hint itself where it has that size already.
    """
    if hint.shape[-2:] == size:
        return hint
    # Axis by axis: a size may grow along one and shrink along the other.
    height, width = (min(have, want) for have, want in zip(hint.shape[-2:], size, strict=True))
    small = _shrunk(hint, (height, width), drawing)
    if (height, width) == size:
        return small
    return functional.interpolate(small, size, mode="nearest-exact") if drawing else functional.interpolate(small, size, mode="bilinear")


def _pixels(first: int, count: int, cells: int, factor: int, around: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels first..first+count-1 along an axis of `cells` latent pixels of `factor` pixels each, and whether they are the picture's own.

    Beyond the border the latent goes on at its other side, or is mirrored at its first and last pixel; each latent pixel takes its own pixels
    along, mirrored too.
    """
    pixel = torch.arange(first, first + count, device=device)
    if around:
        return pixel % (cells * factor), torch.ones_like(pixel, dtype=torch.bool)
    cell, within = torch.div(pixel, factor, rounding_mode="floor"), pixel % factor
    period = max(1, 2 * cells - 2)
    folded = cell % period
    back = folded >= cells
    index = torch.where(back, period - folded, folded) * factor + torch.where(back, factor - 1 - within, within)
    return index, (cell >= 0) & (cell < cells)


def _part(hint: Tensor, top: int, left: int, size: tuple[int, int], factor: int, fill: str) -> Tensor:
    """(N, C, H, W) -> (N, C, *size) from the pixel (top, left) on, which may lie beyond the border."""
    bottom, right = top + size[0], left + size[1]
    height, width = hint.shape[-2:]
    if top >= 0 and left >= 0 and bottom <= height and right <= width:
        return hint[..., top:bottom, left:right]
    around = goes_around(fill)
    rows, own_rows = _pixels(top, size[0], height // factor, factor, around.rows, hint.device)
    columns, own_columns = _pixels(left, size[1], width // factor, factor, around.columns, hint.device)
    part = hint.index_select(-2, rows).index_select(-1, columns)
    return part * (own_rows[:, None] & own_columns) if fill == "zero" else part


def _window_hint(hint: Tensor, window: Window, factor: int, fill: str) -> Tensor:
    return _part(hint, window.top * factor, window.left * factor, (window.height * factor, window.width * factor), factor, fill)


def _dilated_hint(hint: Tensor, grid: DilatedGrid, index: int, factor: int, drawing: bool) -> Tensor:
    """What one dilated view shows, small: the pixels around each of its latent pixels, d x d of them for one.

    A view's latent pixels stand d apart, so its hint is the whole one shrunk by d, moved by where the view begins between its neighbours.
    """
    (dr, dc), (height, width) = grid.dilation, hint.shape[-2:]
    rows = (height // factor + grid.top + grid.bottom) // dr * factor
    columns = (width // factor + grid.left + grid.right) // dc * factor
    top = factor * (index // dc - grid.top) - factor * (dr - 1) // 2
    left = factor * (index % dc - grid.left) - factor * (dc - 1) // 2
    return _shrunk(_part(hint, top, left, (rows * dr, columns * dc), factor, grid.fill), (rows, columns), drawing)


def view_hints(hint: Tensor, batch: ViewBatch, factor: int = 8, drawing: bool = False) -> Tensor:
    """A hint as the views of a model call see it: cut to each local window, shrunk for each dilated view.

    Args:
        hint: (1, C, factor * H, factor * W) for a latent of (H, W).
        batch: the views. `factor`: pixels per latent pixel. `drawing`: see `resized_hint`.

    Returns:
        (views, C, factor * h, factor * w), a row for each view.

    Raises:
        ValueError: where the hint is of another size.
    """
    wanted = (batch.size[0] * factor, batch.size[1] * factor)
    if hint.shape[0] != 1 or hint.shape[-2:] != wanted:
        raise ValueError(f"a hint of shape {tuple(hint.shape)} does not fit one latent of {batch.size}; it needs one picture of {wanted} pixels")
    if batch.grid is None:
        return torch.cat([_window_hint(hint, window, factor, batch.fill) for window in batch.windows])
    return torch.cat([_dilated_hint(hint, batch.grid, index, factor, drawing) for index in range(*batch.part)])
