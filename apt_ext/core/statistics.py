"""Statistics of latents: APT's Statistical Matching and DemoFusion's re-anchoring. All are taken per sample, in float32 at least."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apt_ext.core.types import Size, size_of

__all__ = ["at_least_float32", "match_statistics", "matching_dilation", "mean_std", "reanchor", "renormalise", "statistics_shift"]

WHOLE_SAMPLE = (1, 2, 3)
EACH_CHANNEL = (2, 3)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 at least, the precision that statistics and sums are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_std(x: Tensor, dims: tuple[int, ...] = WHOLE_SAMPLE) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of (B, C, H, W) over `dims`, kept as dimensions of length one."""
    x = at_least_float32(x)
    mean = x.mean(dims, keepdim=True)
    # Two passes: as exact as torch.std_mean and several times faster on a CPU.
    count = math.prod(x.shape[d] for d in dims)
    return mean, (x - mean).square_().sum(dims, keepdim=True).div_(count - 1).sqrt_()


def _rescale(x: Tensor, mean: Tensor, std: Tensor, to_mean: Tensor, to_std: Tensor) -> Tensor:
    """x brought from one mean and std to another. A std of nothing (a flat picture, a single pixel) cannot be scaled up: its contrast stays."""
    usable = std > 1e-6 * (1 + mean.abs())
    ratio = torch.where(usable & to_std.isfinite(), to_std / torch.where(usable, std, torch.ones_like(std)), torch.ones_like(std))
    return (x - mean).mul_(ratio).add_(to_mean)


def renormalise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, C, H, W) with each sample's mean and std replaced by `mean` and `std` (B, 1, 1, 1)."""
    return _rescale(at_least_float32(x), *mean_std(x), mean, std).to(x.dtype)


def matching_dilation(size: Size, reference: Size) -> Size:
    """The sub-grids that Statistical Matching works on: the rounded ratio of the two sizes along (rows, columns), at least 1."""
    return Size(*(max(1, math.floor(n / r + 0.5)) for n, r in zip(size, reference, strict=True)))


def match_statistics(z_up: Tensor, base: Tensor, strength: float = 1.0, dilation: tuple[int, int] | None = None) -> Tensor:
    """Statistical Matching: give every dilated sub-grid of an enlarged latent the statistics of the original.

    Interpolation shrinks a latent's variance, by a different amount at each interpolation phase, so each sub-grid is corrected on its own.

    Args:
        z_up: (B, C, H, W), the enlarged clean latent, before any noise.
        base: (B or 1, C, h, w), the base latent of the same pictures.
        strength: 0 leaves z_up as it is, 1 matches fully, between them is the straight line.
        dilation: sub-grids along (rows, columns); `matching_dilation` of the two sizes when left out.

    Returns:
        (B, C, H, W) in z_up's dtype: z_up[i::d, j::d] has, per sample and channel, the mean and std of the reference.

    Raises:
        ValueError: for a strength outside 0..1.

    Source: APT (arXiv 2507.21690), "Statistical Matching".
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"matching strength {strength} is out of range; use 0 to 1")
    if strength == 0:
        return z_up
    rows, columns = dilation or matching_dilation(size_of(z_up), size_of(base))
    to_mean, to_std = mean_std(base, EACH_CHANNEL)
    matched = at_least_float32(z_up).clone()
    for i in range(rows):
        for j in range(columns):
            view = matched[..., i::rows, j::columns]
            mean, std = mean_std(view, EACH_CHANNEL)
            view.lerp_(_rescale(view, mean, std, to_mean, to_std), strength)
    return matched.to(z_up.dtype)


def reanchor(z: Tensor, base: Tensor) -> Tensor:
    """DemoFusion's end-of-phase correction: each sample's overall mean and std become the reference's.

    Args:
        z: (B, C, H, W), a finished phase's latent.
        base: (B or 1, C, h, w), the base latent.
    """
    return renormalise(z, *mean_std(base))


def statistics_shift(z: Tensor, base: Tensor) -> dict[str, float]:
    """How far a latent's sub-grids are from the reference's statistics, in units of the reference's std.

    Args:
        z: (B, C, H, W); `base`: (B, C, h, w).

    Returns:
        "mean": largest absolute difference of the means; "std": the mean ratio of the stds; "std_min": the smallest such ratio.
    """
    rows, columns = matching_dilation(size_of(z), size_of(base))
    to_mean, to_std = mean_std(base, EACH_CHANNEL)
    parts = [mean_std(z[..., i::rows, j::columns], EACH_CHANNEL) for i in range(rows) for j in range(columns)]
    means = torch.stack([((mean - to_mean) / to_std).abs() for mean, _ in parts])
    ratios = torch.stack([std / to_std for _, std in parts])
    return {"mean": float(means.max()), "std": float(ratios.mean()), "std_min": float(ratios.min())}
