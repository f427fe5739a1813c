"""Running: what is missing of the tasks, the most useful first. Nothing that is in the work folder is done again.

In the folder, `made` holds pictures and their cost, `measured-N` what version N of the measures found in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.quality.making import finish, make
from bench.quality.measuring import VERSION, measure
from bench.quality.pictures import BenchModel
from bench.quality.settings import COMPARED, Setting
from bench.quality.store import Results, append, length, load
from bench.quality.tasks import Task, evaluations

__all__ = ["make_tasks", "pictures_of", "results_of", "run_chunk", "run_tasks"]


def make_tasks(
    settings: Sequence[Setting], benches: Sequence[BenchModel], scales: Sequence[int], kinds: Sequence[str], few: int, full: int, seed: int = 1
) -> list[Task]:
    """Every run that the settings ask for; one content may stand there under several names.

    Args:
        benches: the first one has every setting, the others, for comparison, those of the groups `COMPARED`.
        few, full: pictures of the settings that explore, and of those that are measured in full.
    """
    return [
        Task(setting, scale, kind, bench, full if setting.full else few, seed)
        for number, bench in enumerate(benches)
        for setting in settings
        if number == 0 or setting.group in COMPARED
        for scale in setting.scales
        if scale in scales
        for kind in kinds
    ]


def _made(task: Task, work: Path) -> Path:
    return work / "made" / f"{task.made_key}.npz"


def _measured(task: Task, work: Path) -> Path:
    return work / f"measured-{VERSION}" / f"{task.key}.npz"


def results_of(task: Task, work: Path) -> Results:
    """All that is known of a task's pictures, at most its count, but for the pictures themselves; empty where nothing is."""
    measured = load(_measured(task, work))
    made = load(_made(task, work)) if measured else {}
    shared = min(task.count, len(measured["psnr"])) if measured else 0
    return {name: value[:shared] for name, value in (made | measured).items() if name != "pixels"}


def pictures_of(task: Task, numbers: Sequence[int], work: Path) -> NDArray[np.uint8]:
    """Finished pictures that were made before: (B, h, w, 3)."""
    return finish(task, numbers, load(_made(task, work))["pixels"][list(numbers)], work)


def run_chunk(task: Task, numbers: Sequence[int], work: Path, on_evaluations: Callable[[int], object] = lambda count: None) -> int:
    """Make and measure the pictures with these numbers, which follow on those that are there. What was made before is only measured.

    Returns:
        How many are done: the first of them only, where some were made before and some were not.
    """
    path = _made(task, work)
    made = load(path)
    if made and len(made["pixels"]) > numbers[0]:
        pixels = made["pixels"][numbers[0] : numbers[-1] + 1]
    else:
        new = make(task, numbers, work, on_evaluations)
        append(path, new, numbers[0])
        pixels = new["pixels"]
    numbers = numbers[: len(pixels)]
    append(_measured(task, work), measure(task, numbers, finish(task, numbers, pixels, work), work), numbers[0])
    return len(pixels)


def run_tasks(tasks: Sequence[Task], work: Path, batch: int = 8, minutes: float = float("inf"), quiet: bool = False) -> int:
    """Do what is missing of the tasks' pictures, within a budget of time.

    Returns:
        The number of pictures made or measured.
    """
    unique: dict[str, Task] = {}
    for task in tasks:
        if task.key not in unique or task.count > unique[task.key].count:
            unique[task.key] = task
    until, finished = time.monotonic() + 60 * minutes, 0
    to_make = {task.made_key: task for task in sorted(unique.values(), key=lambda task: task.count)}
    total = sum(evaluations(task) * max(0, task.count - length(_made(task, work))) for task in to_make.values())
    with tqdm(total=total, unit="window", unit_scale=True, disable=quiet, mininterval=1, smoothing=0.02) as bar:
        for task in unique.values():
            bar.set_description(f"{task.setting.group}: {task.setting.name}, {task.scale}x, {task.kind}", refresh=False)
            while (done := length(_measured(task, work))) < task.count:
                if time.monotonic() > until:
                    return finished
                finished += run_chunk(task, range(done, min(task.count, done + batch)), work, bar.update)
    return finished
