"""What the rows of the present model call show: for other extensions' hooks inside the model, which take every call for one of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

from apt_ext.core.borders import NOWHERE, folded, goes_around
from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.types import Around, Denoiser, Size

__all__ = ["View", "ViewsShown", "present_views", "views_of"]


class View(NamedTuple):
    """What one row of a model call shows.

    Attributes:
        rows, columns: where its latent pixels lie in the whole latent. Consecutive for a local window; every d-th for a dilated view. They may reach
            over the border: what lies there is mirrored, or with *fill* "zero" nothing.
        size: (rows, columns) of the whole latent; a latent pixel is 8 pixels.
        around: along which sides a seamless picture goes on at its other side, instead.
    """

    rows: range
    columns: range
    size: Size
    around: Around = NOWHERE

    def cut(self, picture: Tensor) -> Tensor:
        """(..., H, W) that lies over the whole picture, at any resolution -> (..., h, w), its nearest value at each of this view's latent pixels."""
        places = []
        for shown, count, around, length in zip((self.rows, self.columns), self.size, self.around, picture.shape[-2:], strict=True):
            at = folded(shown.start, shown.stop, count, around, picture.device)[:: shown.step]
            places.append((2 * at + 1) * length // (2 * count))
        return picture[..., places[0][:, None], places[1][None, :]]

    def within(self, along_rows: bool, edge: float) -> float:
        """A place along one side of the whole picture, 0 to 1 -> where it lies along that side of this view, 0 to 1; what is beyond is its end."""
        shown, count = (self.rows, self.size.rows) if along_rows else (self.columns, self.size.columns)
        return min(1.0, max(0.0, (edge * count - shown.start) / (shown.step * len(shown))))


_present: ContextVar[tuple[View, ...] | None] = ContextVar("apt_present_views", default=None)


def present_views() -> tuple[View, ...] | None:
    """What each row of the model call under way shows, in the order of its rows; None outside of APT's phases, where a call shows the whole picture."""
    return _present.get()


def views_of(batch: ViewBatch) -> tuple[View, ...]:
    """The views of a batch, without its samples."""
    size, around = Size(*batch.size), goes_around(batch.fill)
    if batch.grid is None:
        return tuple(View(range(w.top, w.top + w.height), range(w.left, w.left + w.width), size, around) for w in batch.windows)
    (dr, dc), grid = batch.grid.dilation, batch.grid
    starts = [(number // dc - grid.top, number % dc - grid.left) for number in range(*batch.part)]
    return tuple(View(range(top, size.rows + grid.bottom, dr), range(left, size.columns + grid.right, dc), size, around) for top, left in starts)


@contextmanager
def _nothing(_: Sequence[View]) -> Iterator[None]:
    yield


class ViewsShown:
    """Lets whoever asks know, for the length of each model call, what its rows show.

    Args:
        around: a call's views -> what else has to be so while the model looks at them.
    """

    def __init__(self, around: Callable[[Sequence[View]], AbstractContextManager[None]] = _nothing):
        self._around, self._samples = around, 0
        self._views: tuple[View, ...] = ()

    def condition(self, inner: Condition) -> Condition:
        """`inner`, which is asked for a call's conditioning right before the model is called."""

        def noted(extra: Any, batch: ViewBatch) -> Any:
            self._views, self._samples = views_of(batch), batch.samples
            return inner(extra, batch)

        return noted

    def model(self, inner: Denoiser) -> Denoiser:
        """`inner`, which is called with rows as `ViewBatch.gather` orders them."""

        def called(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            token = _present.set(self._views * self._samples)
            try:
                with self._around(self._views):
                    return inner(x, sigma, **extra)
            finally:
                _present.reset(token)

        return called
