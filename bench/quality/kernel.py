"""The kernel distance: how far a set of pictures is from a set of true ones, by the features of a fixed random network.

After the Kernel Inception Distance (Binkowski et al., "Demystifying MMD GANs", ICLR 2018), with two differences. The features are
a random convolutional network's, which needs no download and favours no kind of picture. And the unit of sampling is a picture, not a
window: windows of one picture resemble each other, so pairs within a picture do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["features", "kernel_parts", "whitening"]

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


def whitening(reference: Tensor, components: int = COMPONENTS) -> Callable[[Tensor], Tensor]:
    """Standardise features by a reference's, and go over to its leading principal components at unit variance.

    The features are many and much alike; without this a few directions, mostly contrast, make up the whole distance and its noise.
    Args:
        reference: (M, F), of pictures that are not among those to be compared. One component is kept for each 8 of them, up to
            `components`: what the distance sees. With few it sees contrast and coarse structure, with more of them finer differences.

    Returns:
        (..., F) -> (..., components), float64. A constant feature counts nothing.
    """
    std, mean = torch.std_mean(reference.double(), dim=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std, torch.zeros_like(std))
    standard = (reference.double() - mean) * scale
    variance, direction = torch.linalg.eigh(standard.T @ standard / (len(reference) - 1))  # ascending
    kept = min(components, max(1, len(reference) // 8), int((variance > 1e-9 * variance[-1]).sum()))
    project = scale[:, None] * direction[:, -kept:] / variance[-kept:].sqrt()
    return lambda x: (x.double() - mean) @ project


def _between(x: Tensor, y: Tensor) -> Tensor:
    """(n, k, F), (m, l, F) -> (n, m): mean of the polynomial kernel (x.y / F + 1)^3 over the k * l pairs of windows of two pictures."""
    flat = y.flatten(0, 1)
    return torch.stack([((one @ flat.T / flat.shape[1] + 1) ** 3).reshape(-1, len(y), y.shape[1]).mean((0, 2)) for one in x])


def kernel_parts(x: Tensor, true: Tensor, whiten: Callable[[Tensor], Tensor]) -> Tensor:
    """What each picture adds to the distance; their mean is the unbiased MMD^2 x 100 between results and truths.

    A result is never compared with its own truth, nor a picture with itself, so that a scene's content, which both share, favours nobody; over pairs
    of scenes it cancels, where two separate samples of scenes would differ by it.

    Args:
        x: (n, k, F) features of k windows of each of n results. `true`: (n, l, F) of the true picture of each.
        whiten: see `whitening`.

    Returns:
        (n,). As each pair stands in two pictures' parts, a resample of the parts strays half as far from their mean as the distance does from its
        expectation, to first order (Hoeffding's projection of a U-statistic of degree 2).

    Source: the U-statistic of Gretton et al., "A kernel two-sample test", JMLR 2012, lemma 6, whose two samples may come in pairs.
    """
    x, y = whiten(x), whiten(true)
    cross = _between(x, y)
    pairs = _between(x, x) + _between(y, y) - cross - cross.T
    return 100 * (pairs.sum(1) - pairs.diagonal()) / (len(pairs) - 1)
