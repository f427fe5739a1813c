"""The kernel distance: how far a set of pictures is from a set of true ones, by the features of a fixed random network.

After the Kernel Inception Distance (Binkowski et al., "Demystifying MMD GANs", ICLR 2018), with two differences. The features are
a random convolutional network's, which needs no download and knows no photographs. And the unit of sampling is a picture, not a
window: windows of one picture resemble each other, so pairs within a picture count neither in the estimate nor in its bootstrap.
Pictures come in equal shares from a few kinds, the styles, and are taken as a stratified sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KernelBlocks", "features", "kernel_blocks", "kernel_distance", "whitening"]

NETWORK_SEED = 20250721
COMPONENTS = 32
LAYERS = ((3, 24, 5), (24, 48, 3), (48, 96, 3))  # (channels in, channels out, kernel), all of stride 2


@cache
def _network() -> tuple[tuple[Tensor, Tensor], ...]:
    """Weights and biases of the layers, He-initialised from a fixed seed."""
    generator = torch.Generator().manual_seed(NETWORK_SEED)

    def layer(inputs: int, outputs: int, kernel: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn((outputs, inputs, kernel, kernel), generator=generator) * (2 / (inputs * kernel * kernel)) ** 0.5
        return weight, 0.1 * torch.randn(outputs, generator=generator)

    return tuple(layer(*sizes) for sizes in LAYERS)


def features(pictures: Tensor) -> Tensor:
    """(N, 3, h, w) in -1..1 -> (N, F): mean and std over the picture of every channel of every layer, after its ReLU. F = 336.

    Each picture's mean colour is taken out first: true pictures differ in it far more than in anything that a method could spoil.
    """
    x, pooled = pictures.float(), []
    x = x - x.mean((2, 3), keepdim=True)
    for weight, bias in _network():
        x = F.relu(F.conv2d(x, weight, bias, stride=2))
        std, mean = torch.std_mean(x, dim=(2, 3))
        pooled += [mean, std]
    return torch.cat(pooled, 1)


def whitening(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Standardise features by a reference's, and go over to its leading principal components at unit variance.

    The features are many and much alike; without this a few directions, mostly contrast, make up the whole distance and its noise.
    Being fitted to the reference, it puts everything else, other true pictures as well, a little farther away than that is from itself.

    Args:
        reference: (M, F). One component is kept for each 8 of them, up to 32.

    Returns:
        (..., F) -> (..., components), float64. A constant feature counts nothing.
    """
    std, mean = torch.std_mean(reference.double(), dim=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std, torch.zeros_like(std))
    standard = (reference.double() - mean) * scale
    variance, direction = torch.linalg.eigh(standard.T @ standard / (len(reference) - 1))  # ascending
    kept = min(COMPONENTS, max(1, len(reference) // 8), int((variance > 1e-9 * variance[-1]).sum()))
    project = scale[:, None] * direction[:, -kept:] / variance[-kept:].sqrt()
    return lambda x: (x.double() - mean) @ project


class KernelBlocks(NamedTuple):
    """Mean kernel values. `own` (n, n): between two results; `cross` (n,): between a result and all references; `reference`: between two of these."""

    own: Tensor
    cross: Tensor
    reference: float


def _between(x: Tensor, y: Tensor) -> Tensor:
    """(n, k, F), (m, l, F) -> (n, m): mean of the polynomial kernel (x.y / F + 1)^3 over the k * l pairs of windows of two pictures."""
    flat = y.flatten(0, 1)
    return torch.stack([((one @ flat.T / flat.shape[1] + 1) ** 3).reshape(-1, len(y), y.shape[1]).mean((0, 2)) for one in x])


def _pair_mean(own: Tensor, weights: Tensor, strata: Tensor) -> Tensor:
    """(n, n), (R, n), (n,) -> (R,): mean over two different pictures, drawn from the strata in equal shares.

    A stratum's pairs with itself and with the others are averaged apart. Over all pairs at once the former would count too little, as
    no picture is paired with itself, and for pictures that differ more between than within strata that is a bias as large as what is
    to be told apart. NaN where a stratum has a single picture.
    """
    parts = [weights * (strata == stratum) for stratum in sorted(set(strata.tolist()))]
    means = []
    for a in parts:
        for b in parts:
            total, count = ((a @ own) * b).sum(1), a.sum(1) * b.sum(1)
            if a is b:
                total, count = total - a.square() @ own.diagonal(), count - a.square().sum(1)
            means.append(total / count)
    return torch.stack(means).mean(0)


def kernel_blocks(x: Tensor, reference: Tensor, strata: Tensor) -> KernelBlocks:
    """Block means of the kernel, from which `kernel_distance` takes any resample of the pictures.

    Args:
        x: (n, k, F) features of k windows of each of n results. `reference`: (m, l, F) of the true pictures.
        strata: (m,) the kind of each true picture, all kinds equally often.
    """
    whiten = whitening(reference.flatten(0, 1))
    x, y = whiten(x), whiten(reference)
    between = _pair_mean(_between(y, y), torch.ones((1, len(y)), dtype=torch.float64), strata)
    return KernelBlocks(_between(x, x), _between(x, y).mean(1), float(between))


def kernel_distance(blocks: KernelBlocks, weights: Tensor, strata: Tensor) -> Tensor:
    """Unbiased MMD^2 x 100 of resamples of the pictures.

    Args:
        weights: (R, n) how often each picture is in each resample; ones for the sample itself.
        strata: (n,) the kind of each picture; the kinds count in equal shares.

    Returns:
        (R,). Pairs of a picture with itself are left out, also where a resample holds it several times.
    """
    w = weights.double()
    parts = [w * (strata == stratum) for stratum in sorted(set(strata.tolist()))]
    cross = torch.stack([(part @ blocks.cross) / part.sum(1) for part in parts]).mean(0)
    return 100 * (_pair_mean(blocks.own, w, strata) + blocks.reference - 2 * cross)
