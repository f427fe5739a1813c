"""The kernel distance: how far a set of pictures is from a set of true ones, by the features of a fixed random network.

After the Kernel Inception Distance (Binkowski et al., "Demystifying MMD GANs", ICLR 2018), with two differences. The features are
a random convolutional network's, which needs no download and knows no photographs. And the unit of sampling is a picture, not a
window: windows of one picture resemble each other, so pairs within a picture count neither in the estimate nor in its bootstrap.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KernelBlocks", "features", "kernel_blocks", "kernel_distance", "standardise"]

NETWORK_SEED = 20250721
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
    """(N, 3, h, w) in -1..1 -> (N, F): mean and std over the picture of every channel of every layer, after its ReLU. F = 336."""
    x, pooled = pictures.float(), []
    for weight, bias in _network():
        x = F.relu(F.conv2d(x, weight, bias, stride=2))
        std, mean = torch.std_mean(x, dim=(2, 3))
        pooled += [mean, std]
    return torch.cat(pooled, 1)


def standardise(x: Tensor, reference: Tensor) -> Tensor:
    """(..., F) features with the mean and std of the reference's (M, F) features taken out, in float64; a constant feature becomes 0."""
    std, mean = torch.std_mean(reference.double(), dim=0)
    usable = std > 1e-6 * (1 + mean.abs())
    return torch.where(usable, (x.double() - mean) / torch.where(usable, std, torch.ones_like(std)), torch.zeros_like(std))


class KernelBlocks(NamedTuple):
    """Mean kernel values. `own` (n, n): between two results; `cross` (n,): between a result and all references; `reference`: between two of these."""

    own: Tensor
    cross: Tensor
    reference: float


def _between(x: Tensor, y: Tensor) -> Tensor:
    """(n, k, F), (m, l, F) -> (n, m): mean of the polynomial kernel (x.y / F + 1)^3 over the k * l pairs of windows of two pictures."""
    flat = y.flatten(0, 1)
    return torch.stack([((one @ flat.T / flat.shape[1] + 1) ** 3).reshape(-1, len(y), y.shape[1]).mean((0, 2)) for one in x])


def kernel_blocks(x: Tensor, reference: Tensor) -> KernelBlocks:
    """Block means of the kernel, from which `kernel_distance` takes any resample of the pictures.

    Args:
        x: (n, k, F) features of k windows of each of n results. `reference`: (m, l, F) of the true pictures, m at least 2.
    """
    known = reference.flatten(0, 1)
    x, y = standardise(x, known), standardise(reference, known)
    blocks = _between(y, y)
    m = len(y)
    return KernelBlocks(_between(x, x), _between(x, y).mean(1), float((blocks.sum() - blocks.diagonal().sum()) / (m * (m - 1))))


def kernel_distance(blocks: KernelBlocks, weights: Tensor) -> Tensor:
    """Unbiased MMD^2 x 100 of resamples of the pictures.

    Args:
        weights: (R, n) how often each picture is in each resample; ones for the sample itself.

    Returns:
        (R,). Pairs of a picture with itself are left out, also where a resample holds it several times.
    """
    w = weights.double()
    pairs = ((w @ blocks.own) * w).sum(1) - w.square() @ blocks.own.diagonal()
    count = w.sum(1).square() - w.square().sum(1)
    return 100 * (pairs / count + blocks.reference - 2 * (w @ blocks.cross) / w.sum(1))
