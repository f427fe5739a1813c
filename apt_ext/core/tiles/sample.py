"""A few patches of a picture that stand for all of it: which ones, and how much each place of them counts.

The patches are spread evenly; what they happen to hold still differs from the whole picture. Simple features of the picture are known
everywhere, so the places are weighted until the sample's mean features are nearly the picture's. Sums over a network's activations come
out much closer then, as far as these depend on the features: the generalised regression estimator of survey sampling (Cassel, Särndal
and Wretman, "Some results on generalized difference estimation", Biometrika 1976), with a ridge against wild weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.windows import Window, gather_windows

__all__ = ["draw_sample"]

RIDGE = 0.03  # of the features' variance
AROUND = 5  # cells that a place's surroundings are averaged over


def _spread(size: tuple[int, int], side: int, count: int) -> list[tuple[int, int]]:
    """First (row, column) of `count` patches, one in each of as many equal parts; where in its part follows a low-discrepancy sequence."""
    rows = min(count, max(1, round(math.sqrt(count * size[0] / size[1]))))
    parts = [
        (row, column, count * (row + 1) // rows - count * row // rows)
        for row in range(rows)
        for column in range(count * (row + 1) // rows - count * row // rows)
    ]
    jitter = [((k * 0.7548776662) % 1, (k * 0.5698402910) % 1) for k in range(1, len(parts) + 1)]  # Roberts' R2 sequence
    return [
        (int((row + u) * (size[0] - side) / rows), int((column + v) * (size[1] - side) / columns))
        for (row, column, columns), (u, v) in zip(parts, jitter, strict=True)
    ]


def _features(x: Tensor, cell: int) -> Tensor:
    """(B, C, H, W) -> (B, 2 C + C (C + 1) / 2, H / cell, W / cell): means, mean products and mean square detail of each cell."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    detail = (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).square()
    return torch.cat([F.avg_pool2d(v, cell) for v in (x, x[:, i] * x[:, j], detail)], 1)


def _mean_features(x: Tensor, cell: int) -> Tensor:
    """(B, C, H, W) -> (B, K) over all cells, in strips, so that memory does not grow with the picture's height."""
    strips = torch.split(x, 32 * cell, dim=-2)
    return torch.stack([_features(strip.float(), cell).sum((-2, -1)) for strip in strips]).sum(0) / (x.shape[-2] // cell * (x.shape[-1] // cell))


def _regression_weights(rows: Tensor, goal: Tensor) -> Tensor:
    """Weights (n,) of n places by which their features (n, K) have nearly the mean `goal` (K,). Positive, as only these are sure to give a variance."""
    mean, scale = rows.mean(0), rows.std(0) + 1e-9
    rows, missing = (rows - mean) / scale, (goal - mean) / scale
    moments, unit = rows.mT @ rows / len(rows), torch.eye(rows.shape[1], dtype=rows.dtype)
    weight = (1 + rows @ torch.linalg.solve(moments + RIDGE * unit, missing)).clamp(min=0)
    return weight / weight.sum()


def draw_sample(x: Tensor, cell: int, *, side: int, count: int) -> tuple[Tensor, Tensor]:
    """Patches of a picture and the weights that make them stand for all of it.

    Args:
        x: (B, C, H, W), sides multiples of `cell`.
        cell: side in x's pixels of the squares that weights are given to: what becomes one pixel of a latent.
        side: of a patch, in cells; no more than the picture's.
        count: number of patches.

    Returns:
        ((count * B, C, side * cell, side * cell) patch by patch, (count, B, side, side) float32 weights summing to one per sample; zero
        in a twelfth of the side along the edges, where a network sees the end of the patch). No random state is read or changed.
    """
    samples, size = x.shape[0], (x.shape[-2] // cell, x.shape[-1] // cell)
    windows = [Window(top * cell, left * cell, side * cell, side * cell) for top, left in _spread(size, side, count)]
    patches = torch.cat([gather_windows(x, [window]) for window in windows])  # patch by patch
    margin = max(1, side // 12)
    near = _features(patches.float(), cell)
    features = torch.cat([near, F.avg_pool2d(near, AROUND, 1, AROUND // 2, count_include_pad=False)], 1)
    inner = features[..., margin : side - margin, margin : side - margin].reshape(count, samples, -1, side - 2 * margin, side - 2 * margin)
    rows = inner.permute(1, 0, 3, 4, 2).flatten(1, 3).cpu().double()  # some devices have no float64
    # The mean over a picture of the surroundings' means is, but for its border, the mean itself.
    goal = _mean_features(x, cell).cpu().double().repeat(1, 2)
    weight = torch.stack([_regression_weights(*both) for both in zip(rows, goal, strict=True)]).float().to(x.device)
    weight = weight.reshape(samples, count, side - 2 * margin, side - 2 * margin).transpose(0, 1)
    return patches, F.pad(weight, (margin,) * 4)
