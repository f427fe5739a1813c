"""Conditioning of views: whatever is spatial is cut as the latent is, whatever belongs to a sample follows it into every view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from apt_ext.core.dilated import DilatedGrid, gather_dilated
from apt_ext.core.types import Size
from apt_ext.core.windows import Window, gather_windows

__all__ = ["Condition", "ViewBatch", "condition_views", "own_rows"]


@dataclass(frozen=True)
class ViewBatch:
    """The views that go through the model together.

    Attributes:
        size: (rows, columns) of the latent that they are views of.
        samples: B, the samples per view.
        windows: the local windows; empty for dilated views.
        grid: how the latent is taken apart; None for local windows. `part`: first of its views in this batch, and the one after the last.
        fill: what lies beyond the border.
    """

    size: tuple[int, int]
    samples: int
    windows: tuple[Window, ...] = ()
    grid: DilatedGrid | None = None
    part: tuple[int, int] = (0, 0)
    fill: str = "reflect"

    @property
    def count(self) -> int:
        """How many views these are."""
        return len(self.windows) if self.grid is None else self.part[1] - self.part[0]

    @property
    def view_size(self) -> Size:
        """(rows, columns) of each of them."""
        if self.grid is None:
            return Size(self.windows[0].height, self.windows[0].width)
        (down, across), (rows, columns) = self.grid.dilation, self.size
        return Size((rows + self.grid.top + self.grid.bottom) // down, (columns + self.grid.left + self.grid.right) // across)

    def gather(self, x: Tensor) -> Tensor:
        """(N, C, H, W) at the latent's size -> (N * count, C, h, w), sample-major: the views of the first sample come first."""
        if self.grid is None:
            return gather_windows(x, self.windows, self.fill)
        return gather_dilated(x, self.grid, self.part).flatten(0, 1)

    def repeat(self, value: Tensor) -> Tensor:
        """(N, ...), a row for each sample -> (N * count, ...), a row for each view of each sample, in the order of `gather`."""
        return value.repeat_interleave(self.count, 0)

    def spread(self, views: Tensor) -> Tensor:
        """(count, ...), a row for each view -> (samples * count, ...), a row for each view of each sample, in the order of `gather`."""
        return views.repeat(self.samples, *[1] * (views.ndim - 1))


Condition = Callable[[Mapping[str, Any], ViewBatch], Mapping[str, Any]]


def _cut(value: Any, batch: ViewBatch) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(item, batch) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_cut(item, batch) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    rows, columns = batch.size
    if value.ndim == 4 and batch.size != (1, 1) and value.shape[2] % rows == 0 and value.shape[3] % columns == 0:
        factor = value.shape[2] // rows
        if factor == value.shape[3] // columns:
            # A hint at a multiple of the latent's size (pixels, say) is cut in blocks of factor x factor.
            folded = rearrange(value, "b c (h i) (w j) -> b (c i j) h w", i=factor, j=factor)
            return rearrange(batch.gather(folded), "b (c i j) h w -> b c (h i) (w j)", i=factor, j=factor)
    if value.shape[0] == batch.samples:
        return batch.repeat(value)
    return value


def condition_views(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
    """The default `Condition`: model arguments for a batch of views.

    Tensors of four dimensions at the latent's size, or at a whole multiple of it, are cut like the latent; other tensors with one
    row per sample are repeated for its views; everything else, 1 x 1 dummies of another batch size included, is passed on.
    Mappings, lists and tuples are searched through.

    A host that conditions on positions (SDXL's crop coordinates) wraps this and reads `batch.windows`.
    """
    return _cut(extra, batch)


def own_rows(value: Tensor, batch: ViewBatch, own: Callable[[Window, int], Tensor | None]) -> Tensor:
    """Give local windows conditioning of their own, such as AccDiffusion's prompts.

    Args:
        value: (N * count, ...), a model argument as `condition_views` makes it; it is not written to.
        batch: the views. Dilated views keep what they have: each of them shows the whole picture.
        own: a window, row of its N -> what that row sees instead (...), or None where it keeps what it has.

    Returns:
        (N * count, ...).

    Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2.
    """
    if batch.grid is not None:
        return value
    n = value.shape[0] // batch.count
    found = {row * batch.count + k: own(window, row) for row in range(n) for k, window in enumerate(batch.windows)}
    changed = {index: tensor for index, tensor in found.items() if tensor is not None}
    if not changed:
        return value
    value = value.clone()
    for index, tensor in changed.items():
        value[index] = tensor
    return value
