"""Group normalisation that is the same in every tile of a picture.

GroupNorm takes its statistics over the whole input, so a tile that is decoded by itself comes out a little brighter or flatter than
its neighbour. Here the statistics are gathered first, from all tiles or from a sample of the picture, and then held for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ext.core.types import Deal

__all__ = ["shared_group_norm"]


class _Statistics:
    """Running sums for one layer, per sample and group, in float32: values, squares and their weight.

    Args:
        layer: whose inputs they are.
        weights: (P, B, h, w), how much each place of P patches of B samples counts; None counts everything the same.
    """

    def __init__(self, layer: nn.GroupNorm, weights: Tensor | None):
        self.layer, self.weights = layer, weights
        self.sums: tuple[Tensor, Tensor] | None = None
        self.count = 0.0

    def add(self, x: Tensor) -> None:
        """(P * B, C, ...), patch by patch."""
        samples = x.shape[0] if self.weights is None else self.weights.shape[1]
        grouped = x.detach().reshape(-1, samples, self.layer.num_groups, x.shape[1] // self.layer.num_groups, *x.shape[2:]).float()
        values = torch.stack([grouped.mean(3), grouped.square().mean(3)])
        if self.weights is None or x.dim() != 4:
            found = values.flatten(4).mean(-1).mean(1)
        else:
            weights = F.adaptive_avg_pool2d(self.weights, (x.shape[-2], x.shape[-1]))
            found = (values * (weights / weights.sum((0, 2, 3), keepdim=True))[:, :, None]).sum((1, 4, 5))
        places = x[0, 0].numel()
        mean, square = found[0] * places, found[1] * places
        self.sums = (mean, square) if self.sums is None else (self.sums[0] + mean, self.sums[1] + square)
        self.count += places

    def take(self) -> tuple[Tensor, Tensor, float] | None:
        """What was met since it was last taken: sums of values and of squares, (B, groups) each, and their weight; None for nothing."""
        met = None if self.sums is None else (*self.sums, self.count)
        self.sums, self.count = None, 0.0
        return met

    def normalise(self, x: Tensor) -> Tensor:
        """(P * B, C, ...) with the statistics met so far. Batch normalisation does it in one go, each channel of each sample being one of its channels."""
        assert self.sums is not None
        mean, square = (value / self.count for value in self.sums)
        every = (x.shape[0] // mean.shape[0], 1)
        mean, variance = (v.repeat(every).repeat_interleave(x.shape[1] // v.shape[1], 1).flatten() for v in (mean, (square - mean.square()).clamp(min=0)))
        weight, bias = (None if v is None else v.float().repeat(x.shape[0]) for v in (self.layer.weight, self.layer.bias))
        return F.batch_norm(x.reshape(1, -1, *x.shape[2:]), mean, variance, weight, bias, False, 0.0, self.layer.eps).reshape(x.shape)


class _Enough(Exception):
    """Every layer has met the sample: what is left of its run would be thrown away."""


def _dealt(layers: Sequence[_Statistics], calls: Sequence[Callable[[], object]], deal: Deal) -> None:
    """Make the calls, each by the process that it falls to, and give the layers what all of them met, in the calls' order."""
    groups = [each.layer.num_groups for each in layers]

    def met(call: Callable[[], object]) -> Tensor:
        call()
        taken = [each.take() for each in layers]
        like = next((each[0] for each in taken if each is not None), None)
        if like is None:
            return torch.zeros(())
        rows = [like.new_zeros(2 * like.shape[0] * count + 1) for count in groups]
        for row, each in zip(rows, taken, strict=True):
            if each is not None:
                row[:-1], row[-1] = torch.stack(each[:2]).flatten(), each[2]
        return torch.cat(rows)

    found = [rows for rows in deal(met, calls) if rows.ndim]  # all of them before any is given: a layer is met anew in every call
    for rows in found:
        samples = (len(rows) - len(groups)) // (2 * sum(groups))
        for each, row in zip(layers, torch.split(rows, [2 * samples * count + 1 for count in groups]), strict=True):
            (mean, square), count = row[:-1].view(2, samples, -1), float(row[-1])
            if count:
                each.sums = (mean, square) if each.sums is None else (each.sums[0] + mean, each.sums[1] + square)
                each.count += count


@contextmanager
def shared_group_norm(
    module: nn.Module, calibrate: Callable[[], object] | Sequence[Callable[[], object]], weights: Tensor | None = None, deal: Deal = map
) -> Iterator[None]:
    """Within the block, every GroupNorm of a module uses the statistics that it met while `calibrate` ran.

    Args:
        module: an encoder or a decoder. Only these instances are changed, and they are restored in every case.
        calibrate: runs the module over a sample of the picture; or, one call for each, over its tiles. The results are unused.
        weights: (P, B, h, w) float32, summing to one per sample, where calibrate hands the module one batch of P * B patches, patch by
            patch: a sample of the picture. It is run as far as the last layer, each being met once. Left out, a batch is B samples and
            everything counts the same.
        deal: who makes the calls, where they are several.

    With weights, layers normalise by the sample's statistics already while they are calibrated, so that later ones are met behind nearly
    what they will be met behind. Without, later ones are met behind layers that still normalise each call by itself.
    """
    layers = {layer: _Statistics(layer, weights) for layer in module.modules() if isinstance(layer, nn.GroupNorm)}

    def gather(statistics: _Statistics, x: Tensor) -> Tensor:
        """A layer's forward while it is calibrated. With a sample of the whole, the layers behind it meet nearly what they will meet later."""
        statistics.add(x)
        if weights is None:
            of = statistics.layer
            return F.group_norm(x, of.num_groups, of.weight, of.bias, of.eps)
        if all(each.sums is not None for each in layers.values()):
            raise _Enough
        return statistics.normalise(x)

    try:
        for layer, statistics in layers.items():
            layer.__dict__["forward"] = partial(gather, statistics)
        with torch.no_grad(), suppress(_Enough):
            if callable(calibrate):
                calibrate()
            else:
                _dealt(list(layers.values()), calibrate, deal)
        for layer, statistics in layers.items():
            layer.__dict__.pop("forward")
            if statistics.sums is not None:
                layer.__dict__["forward"] = statistics.normalise
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
