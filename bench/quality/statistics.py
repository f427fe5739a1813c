"""From per-picture values to means with intervals, and to comparisons of two rows on the same pictures."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.quality.pictures import strata
from bench.quality.results import Row

__all__ = ["MEASURES", "Measure", "Range", "compare", "known", "mean_of", "ratio", "resamples", "shared", "summary"]

RESAMPLES, BOOTSTRAP_SEED, LEVEL = 1000, 20250721, 0.95


class Measure(NamedTuple):
    """How a measure is read: `goal` is "lower", "higher", or the value that is best. `stray`: how many times as far as the mean of its parts the measure
    strays in a resample (see `kernel_parts`)."""

    text: str
    goal: str | float
    stray: float = 1.0


MEASURES = {
    "psnr": Measure("PSNR to the true picture, dB", "higher"),
    "ssim": Measure("structural similarity to the true picture", "higher"),
    "edges": Measure("edges in place: correlation of blurred gradient magnitudes with the true picture's", "higher"),
    "above": Measure("log10 power over the truth's above the input's Nyquist limit: what had to be invented", 0.0),
    "below": Measure("the same below it", 0.0),
    "kernel": Measure("kernel distance x 100 of native windows to those of the true pictures", "lower", 2.0),
    "agreement": Measure("PSNR of the shrunk result against the input, dB", "higher"),
    "seams": Measure("gradient across window borders over that elsewhere", 1.0),
    "spread": Measure("std of the clean latent that the last phase starts from, over that of the base latent", 1.0),
}


class Range(NamedTuple):
    """A value and its 95 % interval."""

    mean: float
    low: float
    high: float


@cache
def resamples(kind: str, count: int) -> Tensor:
    """(1 + RESAMPLES, count): the sample itself, then bootstrap resamples within the styles, as counts per picture. All rows share them."""
    rng, weights, style = np.random.default_rng(BOOTSTRAP_SEED), np.ones((1 + RESAMPLES, count)), strata(kind, count).numpy()
    for one in set(style.tolist()):
        among = int((style == one).sum())
        weights[1:, style == one] = rng.multinomial(among, np.full(among, 1 / among), RESAMPLES)
    return torch.from_numpy(weights)


def shared(row: Row, other: Row | None = None) -> int:
    """How many pictures two rows share, or one has."""
    return min(len(each["values"]["psnr"]) for each in (row, other or row))


def _resampled(row: Row, name: str, count: int) -> Tensor:
    """(1 + RESAMPLES,) the measure over the first pictures, and over each resample of them. Kernel parts of another count are refused."""
    parts = row["kernel"][str(count)] if name == "kernel" else row["values"][name][:count]
    x, w = torch.tensor(parts, dtype=torch.float64), resamples(row["kind"], count)
    means = (w @ x) / w.sum(1)
    return means[0] + MEASURES[name].stray * (means - means[0])


def _range(values: Tensor) -> Range:
    low, high = torch.quantile(values[1:], torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)).tolist()
    return Range(float(values[0]), low, high)


def mean_of(row: Row, name: str, count: int | None = None) -> Range:
    """A row's measure over its first pictures, all where no count is given."""
    return _range(_resampled(row, name, count or shared(row)))


def ratio(row: Row, other: Row, name: str) -> float:
    """A row's measure over another's on the pictures that they share."""
    count = shared(row, other)
    return float(_resampled(row, name, count)[0] / _resampled(other, name, count)[0])


def compare(row: Row, other: Row, name: str) -> tuple[Range, str]:
    """A row minus another on the same pictures, and "better", "worse" or "not told apart": the interval decides. Where a value is best, distances to it are
    compared."""
    goal, count = MEASURES[name].goal, shared(row, other)
    one, two = (_resampled(each, name, count) for each in (row, other))
    if isinstance(goal, float):
        one, two = (one - goal).abs(), (two - goal).abs()
    found = _range(one - two)
    below, above = ("worse", "better") if goal == "higher" else ("better", "worse")
    return found, "not told apart" if found.low <= 0 <= found.high else below if found.high < 0 else above


def known(row: Row, other: Row, name: str) -> bool:
    """Whether two rows can be compared: kernel parts belong to the pictures that they were taken over."""
    count = str(shared(row, other))
    return name != "kernel" or (count in row["kernel"] and count in other["kernel"])


def summary(row: Row, lanczos: Row) -> dict[str, Any]:
    """What the front shows of a row: fidelity, detail, and both against Lanczos."""
    count = shared(row, lanczos)
    values = {name: mean_of(row, name, count).mean for name in ("psnr", "ssim", "edges", "agreement", "above", "seams")}
    return {
        **values,
        "evaluations": row["evaluations"],
        "pictures": count,
        "loss": mean_of(lanczos, "psnr", count).mean - values["psnr"],
        "missing": ratio(row, lanczos, "above"),
        "kernel": ratio(row, lanczos, "kernel"),
    }
