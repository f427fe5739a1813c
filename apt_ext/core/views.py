"""Views of a latent go through the model here, and only here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from apt_ext.core.conditioning import Condition, ViewBatch, condition_views
from apt_ext.core.types import Deal, Denoiser

__all__ = ["ViewCalls", "even_batches"]


def even_batches(count: int, most: int) -> list[slice]:
    """Split `count` views into as few batches of at most `most` as possible, of sizes that differ by at most one.

    Example:
        >>> [list(range(9))[part] for part in even_batches(9, 4)]
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    """
    batches = -(-count // max(1, most))
    edges = [round(k * count / batches) for k in range(batches + 1)] if batches else []
    return [slice(a, b) for a, b in pairwise(edges)]


def _ignore(_: int) -> None:
    pass


class ViewCalls:
    """How views are evaluated: by which model, how many in a call, and with which conditioning.

    Args:
        model: k-diffusion's signature; what it is called with has the size of a view.
        batch: views in a model call (of B samples each). It changes memory and speed, not the picture but for rounding.
        condition: turns the model's other arguments into those of a call's views.
        on_views: told the number of views done after each call; may raise to interrupt.
        deal: who makes the calls: this process, or several (`apt_ext.core.ranks`). The batches are cut before, so a view's companions, and with them
            the last bits of its estimate, do not depend on how many processes there are.

    Attributes:
        batch: may be set anew between two calls of `estimates`, after an out-of-memory error, say.
    """

    def __init__(
        self,
        model: Denoiser,
        batch: int = 8,
        condition: Condition = condition_views,
        on_views: Callable[[int], None] = _ignore,
        deal: Deal = map,
    ):
        self.model, self.batch, self.condition, self.on_views, self.deal = model, batch, condition, on_views, deal

    def estimates(
        self, batches: Sequence[ViewBatch], gather: Callable[[ViewBatch], Tensor], sigma: Tensor, extra: Mapping[str, Any]
    ) -> Iterator[tuple[ViewBatch, Tensor]]:
        """Evaluate batches of views, one after the other.

        Args:
            batches: of at most `batch` views each. `gather`: a batch -> what the model sees, (N * count, C, h, w) in the order of `ViewBatch.gather`.
            sigma: (N,), of the samples. `extra`: the model's other arguments, for the latent as a whole.

        Yields:
            Each batch with its estimates, shaped and ordered as what the model saw, in the order of `batches`.
        """

        def estimate(views: ViewBatch) -> Tensor:
            return self.model(gather(views), views.repeat(sigma), **self.condition(extra, views))

        made = self.deal(estimate, batches)
        for views in batches:
            yield views, next(made)
            self.on_views(views.count)
