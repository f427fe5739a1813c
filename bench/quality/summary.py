"""From per-picture values to the summary: means with bootstrap intervals, and every row against DemoFusion as published and against
the row of its group that the group's question compares it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.machine import facts
from bench.quality.kernel import kernel_distance, kernel_pairs, whitening
from bench.quality.pictures import PIXELS, strata
from bench.quality.runner import results_of
from bench.quality.settings import TRUTH, reference_of
from bench.quality.store import Results
from bench.quality.tasks import Task

__all__ = ["MEASURES", "Measure", "resamples", "summarise"]

RESAMPLES, BOOTSTRAP_SEED, LEVEL = 1000, 20250721, 0.95


class Measure(NamedTuple):
    """How a measure is read: `goal` is "lower", "higher", or the value that is best."""

    text: str
    goal: str | float


MEASURES = {
    "kernel_windows": Measure("kernel distance x 100 of native windows to those of the true pictures", "lower"),
    "kernel_strong": Measure("the same by the 8 strongest components of the features instead of 32; where the two disagree, neither decides", "lower"),
    "kernel_whole": Measure("kernel distance x 100 of whole pictures, shrunk to the native size", "lower"),
    "spectrum_below": Measure("log10 power over the truth's, below the base picture's Nyquist limit", 0.0),
    "spectrum_above": Measure("the same above it: what the method had to invent", 0.0),
    "agreement": Measure("PSNR in dB of the shrunk picture against the base picture", "higher"),
    "structure": Measure("correlation of blurred edges with the truth, or with the enlarged base picture where it was generated", "higher"),
    "seams": Measure("gradient across window borders over that elsewhere", 1.0),
    "repetition": Measure("likeness of a picture's windows to each other, minus the truth's", "lower"),
    "monotonicity": Measure("lag-one autocorrelation inside native windows of the final latent, minus the truth's", 0.0),
    "shift_mean": Measure("largest shift of a sub-grid's mean against the base latent, in its stds", "lower"),
    "shift_std": Measure("mean ratio of the sub-grids' stds to the base latent's", 1.0),
    "shift_std_min": Measure("smallest such ratio", 1.0),
}
KERNELS = {"kernel_windows": ("windows", 32), "kernel_strong": ("windows", 8), "kernel_whole": ("whole", 32)}  # features, components

Statistic = Callable[[Tensor], Tensor]
"""(R, n) how often each picture is in each resample -> (R,) the measure over the resample."""


@cache
def resamples(count: int) -> Tensor:
    """(1 + RESAMPLES, count): the sample itself, then bootstrap resamples within the styles, as counts per picture.

    Every row uses the same, so differences are paired.
    """
    rng, weights, style = np.random.default_rng(BOOTSTRAP_SEED), np.ones((1 + RESAMPLES, count)), strata(count).numpy()
    for one in set(style.tolist()):
        among = int((style == one).sum())
        weights[1:, style == one] = rng.multinomial(among, np.full(among, 1 / among), RESAMPLES)
    return torch.from_numpy(weights)


def _interval(values: Tensor) -> dict[str, float]:
    """The sample's own value and the percentile interval of the resamples'."""
    low, high = torch.quantile(values[1:], torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)).tolist()
    return {"mean": round(float(values[0]), 5), "low": round(low, 5), "high": round(high, 5)}


def _mean_of(values: NDArray[Any]) -> Statistic:
    x = torch.from_numpy(values).double()
    return lambda w: (w @ x[: w.shape[1]]) / w.sum(1)


def _kernel_of(pairs: Tensor) -> Statistic:
    def distance(w: Tensor) -> Tensor:
        n = w.shape[1]
        return kernel_distance(pairs[:n, :n], w)

    return distance


def _statistics(results: Results, truth: Results, reference: Results, paired: bool) -> dict[str, Statistic]:
    """Every measure of a row as a function of the resample.

    Args:
        truth: of the same pictures where `paired`. Elsewhere of others of the same kinds, whose mean stands for the truth of each.
        reference: other true pictures, which the kernel's features are fitted to.
    """
    count = len(results["agreement"])

    def beyond_truth(name: str) -> NDArray[Any]:
        true = truth[name][:count] if paired else truth[name].mean(0, keepdims=True)
        return results[name].astype(np.float64) - true

    spectrum = beyond_truth("spectrum")  # column k is k + 1 cycles per picture
    limit = PIXELS // 2 - 1
    values = {name: results[name] for name in ("agreement", "structure", "seams", "shift_mean", "shift_std", "shift_std_min")}
    values |= {"spectrum_below": spectrum[:, :limit].mean(1), "spectrum_above": spectrum[:, limit:].mean(1)}
    values |= {name: beyond_truth(name) for name in ("repetition", "monotonicity")}
    kernels = {}
    for name, (part, components) in KERNELS.items():
        of, true, other = (torch.from_numpy(each[part]) for each in (results, truth, reference))
        kernels[name] = kernel_pairs(of, true[:count], whitening(other.flatten(0, 1), components))
    made = {name: _kernel_of(pairs) for name, pairs in kernels.items()} | {name: _mean_of(value) for name, value in values.items()}
    return {name: made[name] for name in MEASURES}


def _difference(measure: Measure, one: Tensor, other: Tensor) -> dict[str, Any]:
    """A row minus its reference, in distance to the goal where the goal is a value. The verdict is one only where the interval leaves out 0."""
    if isinstance(measure.goal, float):
        one, other = (one - measure.goal).abs(), (other - measure.goal).abs()
    found: dict[str, Any] = dict(_interval(one - other))
    low, high = found["low"], found["high"]
    below, above = ("worse", "better") if measure.goal == "higher" else ("better", "worse")
    found["verdict"] = "not told apart" if low <= 0 <= high else below if high < 0 else above
    return found


def _curve(results: Results) -> list[dict[str, Any]]:
    """The monotonicity of the denoised estimate at every step, averaged over the pictures, by phase."""
    phases = results["curve_phase"][0]
    mean = results["curve"].mean(0)
    return [{"phase": int(phase), "steps": [round(float(v), 4) for v in mean[phases == phase]]} for phase in sorted(set(phases.tolist()))]


def summarise(tasks: Sequence[Task], count: int, work: Path) -> dict[str, Any]:
    """The summary of the tasks' first `count` pictures, as far as they are there.

    Returns:
        What the JSON file holds: how it was made, the measures' meanings, one row per setting, and what is missing.
    """

    @lru_cache(maxsize=8)
    def results(task: Task) -> Results | None:
        return {name: value[:count] for name, value in results_of(task, work).items()} or None

    @cache
    def statistics(key: str) -> dict[str, Statistic] | None:
        task = by_key[key]
        # All that there are, however many pictures are asked for: what the features are fitted to decides what the distance means.
        found, reference = results(task), results_of(dataclasses.replace(task, setting=TRUTH, base="reference"), work)
        paired = task.base != "generated"
        truth = results(dataclasses.replace(task, setting=TRUTH)) if paired else reference
        if not found or not reference or not truth or len(reference["agreement"]) < 2:
            return None
        if len(found["agreement"]) < 2 or len(truth["agreement"]) < len(found["agreement"]):
            return None
        return _statistics(found, truth, reference, paired)

    def compared(task: Task, other: Task) -> dict[str, Any] | None:
        """A task's paired differences from another's, where both are measured and are not the same."""
        by_key.setdefault(other.key, other)
        ours, theirs, mine, its = results(task), results(other), statistics(task.key), statistics(other.key)
        if ours is None or theirs is None or mine is None or its is None or other.key == task.key:
            return None
        shared = resamples(min(len(ours["agreement"]), len(theirs["agreement"])))
        return {
            "group": other.setting.group,
            "name": other.setting.name,
            "pictures": shared.shape[1],
            "evaluations": int(theirs["evaluations"][0]),
            "differences": {name: _difference(measure, mine[name](shared), its[name](shared)) for name, measure in MEASURES.items()},
        }

    def row_of(task: Task) -> dict[str, Any] | None:
        found, mine = results(task), statistics(task.key)
        if found is None or mine is None:
            return None
        setting, pictures = task.setting, len(found["agreement"])
        row: dict[str, Any] = {
            "group": setting.group,
            "name": setting.name,
            "scale": task.scale,
            "base": task.base,
            "model": task.bench.sha256[:12],
            "seed": task.seed,
            "key": task.key,
            "how": setting.how,
            "pictures": pictures,
            "evaluations": int(found["evaluations"][0]),
            "seconds": round(float(found["seconds"].mean()), 4),
        }
        if "passes" in found:
            row["passes"] = int(found["passes"][0])
        if task.sampled:
            how = {name: getattr(setting, name) for name in ("sampler", "schedule", "guidance", "guided_above")}
            row |= {**how, "options": dataclasses.asdict(setting.options)}
        weights = resamples(pictures)
        row["measures"] = {name: _interval(statistic(weights)) for name, statistic in mine.items()}
        for name, other in (("against", reference_of(setting)), ("beside", rows_by_name.get((setting.group, setting.beside)))):
            differences = other and compared(task, dataclasses.replace(task, setting=other))
            if differences:
                row[name] = differences
        if task.sampled:
            row["curve"] = _curve(found)
        return row

    by_key = {task.key: task for task in tasks}
    rows_by_name = {(task.setting.group, task.setting.name): task.setting for task in tasks}
    rows, missing = [], []
    for task in tasks:
        found, row = results(task), None if task.base == "reference" else row_of(task)
        if row:
            rows.append(row)
        pictures = len(found["agreement"]) if found else 0
        if pictures < count or (row is None and task.base != "reference"):
            what = {"group": task.setting.group, "name": task.setting.name, "scale": task.scale, "base": task.base, "seed": task.seed}
            missing.append({**what, "model": task.bench.sha256[:12], "pictures": pictures})
    return {
        "count": count,
        "scales": sorted({task.scale for task in tasks}),
        "bases": sorted({task.base for task in tasks}),
        "seeds": sorted({task.seed for task in tasks}),
        "bootstrap": {"resamples": RESAMPLES, "seed": BOOTSTRAP_SEED, "level": LEVEL, "over": "pictures, within their styles"},
        "machine": facts(torch.device("cpu")),
        "models": [{"name": name, "sha256": sha} for name, sha in dict.fromkeys((task.bench.name, task.bench.sha256) for task in tasks)],
        "measures": {name: measure._asdict() for name, measure in MEASURES.items()},
        "rows": rows,
        "missing": missing,
    }
