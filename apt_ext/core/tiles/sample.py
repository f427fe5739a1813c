"""A few patches of a picture that stand for all of it: which ones, and how much each place of them counts.

The patches are spread evenly and reach its border; what they happen to hold still differs from the whole picture. Simple features of the
picture, and how near its border a place is, are known everywhere, so the places are weighted until the sample's mean features are nearly
the picture's. Sums over a network's activations come out much closer then, as far as these depend on the features: the generalised
regression estimator of survey sampling (Cassel, Särndal and Wretman, "Some results on generalized difference estimation", Biometrika
1976), with a ridge against wild weights.
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
NEAR = 4  # cells from the picture's border whose values depend much on what a network sees beyond it


def _start(part: int, parts: int, jitter: float, room: int) -> int:
    """Where a patch begins along an axis on which it can begin at 0 to `room`, its part being one of `parts` equal ones."""
    if parts == 1:
        return int(min(max(1.5 * jitter - 0.25, 0.0), 1.0) * room)  # a sixth of the patches at each border
    return room * (part > 0) if part in (0, parts - 1) else int((part + jitter) * room / parts)


def _spread(size: tuple[int, int], side: int, count: int) -> list[Window]:
    """`count` patches, one in each of as many equal parts of a picture of `size` cells; the outer ones lie along its border.

    A network sees zeros or copies beyond the border, and what it makes of them counts for more than so narrow a rim should.
    """
    rows = min(count, max(1, round(math.sqrt(count * size[0] / size[1]))))
    parts = [
        (row, column, count * (row + 1) // rows - count * row // rows)
        for row in range(rows)
        for column in range(count * (row + 1) // rows - count * row // rows)
    ]
    jitter = [((k * 0.7548776662) % 1, (k * 0.5698402910) % 1) for k in range(1, len(parts) + 1)]  # Roberts' R2 sequence
    return [
        Window(_start(row, rows, u, size[0] - side), _start(column, columns, v, size[1] - side), side, side)
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


def _near_border(size: tuple[int, int], device: torch.device) -> Tensor:
    """(2, rows, columns): 1 at the picture's outermost cells; 1 within NEAR cells of its border."""
    rows, columns = (torch.arange(length, device=device) for length in size)
    distance = torch.minimum(torch.minimum(rows, rows.flip(0))[:, None], torch.minimum(columns, columns.flip(0))[None])
    return torch.stack([distance < 1, distance < NEAR]).float()


def _trusted(patches: list[Window], size: tuple[int, int], margin: int) -> Tensor:
    """(count, side, side): which cells are `margin` or more away from any end of their patch that is not the picture's end too."""
    found = torch.zeros((len(patches), patches[0].height, patches[0].width), dtype=torch.bool)
    for inside, (top, left, height, width) in zip(found, patches, strict=True):
        bottom, right = height - margin * (top + height < size[0]), width - margin * (left + width < size[1])
        inside[margin * (top > 0) : bottom, margin * (left > 0) : right] = True
    return found


def draw_sample(x: Tensor, cell: int, *, side: int, count: int) -> tuple[Tensor, Tensor]:
    """Patches of a picture and the weights that make them stand for all of it.

    Args:
        x: (B, C, H, W), sides multiples of `cell`.
        cell: side in x's pixels of the squares that weights are given to: what becomes one pixel of a latent.
        side: of a patch, in cells; no more than the picture's.
        count: number of patches.

    Returns:
        ((count * B, C, side * cell, side * cell) patch by patch, (count, B, side, side) float32 weights summing to one per sample; zero in a
        twelfth of the side along edges inside the picture, where a network sees the end of the patch). No random state is read or changed.
    """
    samples, size = x.shape[0], (x.shape[-2] // cell, x.shape[-1] // cell)
    windows = _spread(size, side, count)
    patches = torch.cat([gather_windows(x, [Window(*(cell * of for of in window))]) for window in windows])  # patch by patch
    border = _near_border(size, x.device)
    near = _features(patches.float(), cell)
    around = F.avg_pool2d(near, AROUND, 1, AROUND // 2, count_include_pad=False)
    features = torch.cat([near, around, gather_windows(border[None], windows).repeat_interleave(samples, 0)], 1)
    trusted = _trusted(windows, size, max(1, side // 12)).to(x.device)
    rows = features.reshape(count, samples, *features.shape[1:]).permute(1, 0, 3, 4, 2)[:, trusted].cpu().double()  # some devices have no float64
    # The mean over a picture of the surroundings' means is, but for its border, the mean itself.
    goal = torch.cat([_mean_features(x, cell).repeat(1, 2), border.mean((1, 2)).expand(samples, -1)], 1).cpu().double()
    weights = torch.zeros((samples, count, side, side), device=x.device)
    weights[:, trusted] = torch.stack([_regression_weights(*both) for both in zip(rows, goal, strict=True)]).float().to(x.device)
    return patches, weights.transpose(0, 1)
