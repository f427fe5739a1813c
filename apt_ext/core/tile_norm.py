"""Group normalisation that is the same in every tile of a picture.

GroupNorm takes its statistics over the whole input, so a tile that is decoded by itself comes out a little brighter or flatter than
its neighbour. Here the statistics are gathered over all tiles first and then held for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["shared_group_norm"]


class _Sums:
    """Running sums over the tiles for one layer: values, squares and their number, per sample and group."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.square: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor, groups: int) -> None:
        grouped = x.detach().float().reshape(x.shape[0], groups, -1)
        value, square = grouped.sum(-1), grouped.square().sum(-1)
        self.value = value if self.value is None else self.value + value
        self.square = square if self.square is None else self.square + square
        self.count += grouped.shape[-1]


def _held(layer: nn.GroupNorm, sums: _Sums) -> Callable[[Tensor], Tensor]:
    """The layer's forward with its statistics replaced by the gathered ones."""
    assert sums.value is not None
    assert sums.square is not None
    mean = sums.value / sums.count
    scale = (sums.square / sums.count - mean.square()).clamp(min=0).add(layer.eps).rsqrt()

    def forward(x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], layer.num_groups, -1)
        y = ((grouped - mean[..., None].to(x.dtype)) * scale[..., None].to(x.dtype)).reshape(x.shape)
        if layer.affine:
            y = y * layer.weight[:, None, None] + layer.bias[:, None, None]
        return y

    return forward


@contextmanager
def shared_group_norm(module: nn.Module, calibrate: Callable[[], object]) -> Iterator[None]:
    """Within the block, every GroupNorm of a module uses the statistics that it met while `calibrate` ran.

    Args:
        module: an encoder or a decoder. Only these instances are changed, and they are restored in every case.
        calibrate: runs the module over all tiles once, its results unused. It doubles the work; where that is too much, over some.

    The statistics of a layer are exact for the first one; later ones are met behind layers that still normalised each tile by itself,
    which is close, and the same for all tiles in any case.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    sums = {id(layer): _Sums() for layer in layers}
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: sums[id(layer)].add(inputs[0], layer.num_groups)) for layer in layers]
    try:
        with torch.no_grad():
            calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    met = [layer for layer in layers if sums[id(layer)].count]
    try:
        for layer in met:
            layer.__dict__["forward"] = _held(layer, sums[id(layer)])
        yield
    finally:
        for layer in met:
            layer.__dict__.pop("forward", None)
