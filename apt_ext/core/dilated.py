"""Dilated views: the d x d interleaved sub-grids of a latent, each of which shows the whole picture at about base size.

Source: DemoFusion (Du et al., CVPR 2024), section 3.3, "Dilated Sampling".
"""

from __future__ import annotations

import math
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from apt_ext.core.windows import extend

__all__ = ["DilatedGrid", "dilated_grid", "dilation_for", "gather_dilated", "scatter_dilated"]


def dilation_for(size: tuple[int, int], base: tuple[int, int]) -> tuple[int, int]:
    """d along (rows, columns): the rounded ratio of the two sizes, at least 2 on an axis that grew, 1 on one that did not."""
    return tuple(max(2, math.floor(n / b + 0.5)) if n > b else 1 for n, b in zip(size, base, strict=True))  # type: ignore[return-value]


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
            DemoFusion's own code does.
        multiple: the sides of a view are made a multiple of this, for models that halve their input several times.
    """
    rows, columns = (-n % (d * multiple) for n, d in zip(size, dilation, strict=True))
    return DilatedGrid(dilation, rows, columns, 0, 0, fill) if fill == "zero" else DilatedGrid(dilation, 0, 0, rows, columns, fill)


def pad_to_grid(x: Tensor, grid: DilatedGrid) -> Tensor:
    """(B, C, H, W) -> the padded latent, whose sides divide by the grid's dilation."""
    return extend(x, grid.top, grid.left, grid.bottom, grid.right, grid.fill)


def gather_dilated(x: Tensor, grid: DilatedGrid) -> Tensor:
    """Take a latent apart.

    Args:
        x: (B, C, H, W).
        grid: from `dilated_grid` for that size.

    Returns:
        (d_rows * d_columns * B, C, h, w), view-major (row offset outermost): view (i, j) is padded x[i::d, j::d].
    """
    i, j = grid.dilation
    return rearrange(pad_to_grid(x, grid), "b c (h i) (w j) -> (i j b) c h w", i=i, j=j)


def scatter_dilated(views: Tensor, grid: DilatedGrid) -> Tensor:
    """Put a latent together again: the inverse of `gather_dilated`, the padding cut off."""
    i, j = grid.dilation
    x = rearrange(views, "(i j b) c h w -> b c (h i) (w j)", i=i, j=j)
    height, width = x.shape[-2:]
    return x[..., grid.top : height - grid.bottom, grid.left : width - grid.right]
