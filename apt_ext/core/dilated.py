"""Dilated views: the d x d interleaved sub-grids of a latent, each of which shows the whole picture at about base size.

Source: DemoFusion (Du et al., CVPR 2024), section 3.3, "Dilated Sampling".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from apt_ext.core.borders import extend, goes_around
from apt_ext.core.types import Size

__all__ = ["DilatedGrid", "dilated_grid", "dilation_for", "gather_dilated", "scatter_dilated"]


MARGIN = 4  # pixels of a view


def dilation_for(size: tuple[int, int], base: tuple[int, int]) -> Size:
    """d along (rows, columns): the rounded ratio of the two sizes, at least 2 on an axis that grew, 1 on one that did not."""
    return Size(*(max(2, math.floor(n / b + 0.5)) if n > b else 1 for n, b in zip(size, base, strict=True)))


class DilatedGrid(NamedTuple):
    """How a latent is taken apart: d along (rows, columns), and the padding that makes its sizes divide."""

    dilation: tuple[int, int]
    top: int
    left: int
    bottom: int
    right: int
    fill: str

    @property
    def views(self) -> int:
        """How many sub-grids there are."""
        return self.dilation[0] * self.dilation[1]


def dilated_grid(size: tuple[int, int], dilation: tuple[int, int], fill: str = "reflect", multiple: int = 1) -> DilatedGrid:
    """Plan the sub-grids of a latent of any size.

    Args:
        size: (rows, columns) of the latent.
        dilation: d along (rows, columns).
        fill: "reflect" pads below and to the right with the mirror image; "zero" above and to the left with zeros, as
            DemoFusion's own code does. Along an axis that goes on at its other side (`fill_around`), both ends get what lies there, at least
            `MARGIN` pixels of each view or none, so that where the padding ends nothing of the picture is near.
        multiple: the sides of a view are made a multiple of this, for models that halve their input several times.
    """
    around = goes_around(fill)
    ends = [_ends(n, d, multiple, on) for n, d, on in zip(size, dilation, around, strict=True)]
    (top, bottom), (left, right) = ends if fill != "zero" else [end[::-1] for end in ends]
    return DilatedGrid(dilation, top, left, bottom, right, fill)


def _ends(size: int, dilation: int, multiple: int, around: bool) -> tuple[int, int]:
    """Padding before and after an axis."""
    unit = dilation * multiple
    missing = -size % unit
    if not around:
        return 0, missing
    while 0 < missing < 2 * MARGIN * dilation:
        missing += unit
    return missing // 2, missing - missing // 2


def pad_to_grid(x: Tensor, grid: DilatedGrid) -> Tensor:
    """(B, C, H, W) -> the padded latent, whose sides divide by the grid's dilation."""
    return extend(x, grid.top, grid.left, grid.bottom, grid.right, grid.fill)


def gather_dilated(x: Tensor, grid: DilatedGrid, part: tuple[int, int] | None = None) -> Tensor:
    """Take a latent apart.

    Args:
        x: (B, C, H, W).
        grid: from `dilated_grid` for that size.
        part: the first of the views that are wanted, and the one after the last; all of them when left out.

    Returns:
        (B, views, C, h, w): view i * d_columns + j is padded x[i::d_rows, j::d_columns].
    """
    rows, columns = grid.dilation
    padded, (start, stop) = pad_to_grid(x, grid), part or (0, grid.views)
    return torch.stack([padded[..., view // columns :: rows, view % columns :: columns] for view in range(start, stop)], dim=1)


def scatter_dilated(views: Tensor, grid: DilatedGrid) -> Tensor:
    """Put a latent (B, C, H, W) together again: the inverse of `gather_dilated`, the padding cut off."""
    rows, columns = grid.dilation
    x = rearrange(views, "b (i j) c h w -> b c (h i) (w j)", i=rows, j=columns)
    height, width = x.shape[-2:]
    return x[..., grid.top : height - grid.bottom, grid.left : width - grid.right]
