"""Running: what is missing of the tasks, the most useful first. Nothing that is in the work folder is done again.

In the folder, `made` holds latents and their cost, `measured-N` what version N of the measures found in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.quality.making import make
from bench.quality.measuring import VERSION, measure
from bench.quality.pictures import BenchModel, load_bases
from bench.quality.settings import TRUTH, Setting
from bench.quality.store import Results, append, length, load
from bench.quality.tasks import Task, evaluations, most_pictures, passes

__all__ = ["make_tasks", "results_of", "run_chunk", "run_tasks"]

FIRST = {("presets", 4): 1, ("presets", 2): 2, ("methods", 2): 3}  # what is most worth knowing; the rest follows, group by group


def make_tasks(settings: Sequence[Setting], benches: Sequence[BenchModel], scales: Sequence[int], bases: Sequence[str], seeds: Sequence[int]) -> list[Task]:
    """Every run that the settings ask for, the most useful first; one content may stand there under several names."""
    tasks = [
        Task(setting, scale, base, bench, seed)
        for seed in seeds
        for bench in benches
        for setting in settings
        for scale in setting.scales
        if scale in scales
        for base in bases
        if not (base == "generated" and setting.how in ("truth", "render"))  # the model's own pictures have no truth
    ]
    references = [Task(TRUTH, scale, "reference", bench, seeds[0]) for bench in benches for scale in scales]

    def order(task: Task) -> tuple[int, int, int]:
        group = task.setting.group
        rank = 0 if group == "baselines" else FIRST.get((group, task.scale), len(FIRST) + 1)
        return rank, seeds.index(task.seed), bases.index(task.base)

    return references + sorted(tasks, key=order)


def _made(task: Task, work: Path) -> Path:
    return work / "made" / f"{task.key}.npz"


def _measured(task: Task, work: Path) -> Path:
    return work / f"measured-{VERSION}" / f"{task.key}.npz"


def results_of(task: Task, work: Path) -> Results:
    """All that is known of a task's pictures, but for the latents; empty where nothing is."""
    measured = load(_measured(task, work))
    made = load(_made(task, work)) if measured else {}
    return {name: value[: len(measured["agreement"])] for name, value in (made | measured).items() if name != "latent"}


def run_chunk(task: Task, numbers: Sequence[int], work: Path, on_evaluations: Callable[[int], object] = lambda count: None) -> int:
    """Make and measure the pictures with these numbers, which follow on those that are there. What was made before is only measured.

    Returns:
        How many are done: the first of them only, where some were made before and some were not.
    """
    path = _made(task, work)
    made = load(path)
    if made and len(made["latent"]) > numbers[0]:
        latent = made["latent"][numbers[0] : numbers[-1] + 1]
        bases = load_bases(task.base, task.bench, numbers[: len(latent)], work)
    else:
        bases = load_bases(task.base, task.bench, numbers, work)
        new = make(task, bases, work, on_evaluations)
        append(path, new, numbers[0])
        latent = new["latent"]
    append(_measured(task, work), measure(task, bases, torch.from_numpy(latent), work), numbers[0])
    return len(latent)


def run_tasks(tasks: Sequence[Task], count: int, batch: int, work: Path, minutes: float = float("inf"), quiet: bool = False) -> int:
    """Do what is missing of the tasks' first `count` pictures, within a budget of time.

    Returns:
        The number of pictures made or measured.
    """
    unique = list({task.key: task for task in reversed(tasks)}.values())[::-1]
    until, finished = time.monotonic() + 60 * minutes, 0
    total = sum(evaluations(task) * passes(task) * max(0, count - length(_made(task, work))) for task in unique)
    with tqdm(total=total, unit="window", unit_scale=True, disable=quiet, mininterval=1, smoothing=0.02) as bar:
        for task in unique:
            bar.set_description(f"{task.setting.group}: {task.setting.name}, {task.scale}x, {task.base}", refresh=False)
            while (done := length(_measured(task, work))) < count:
                if time.monotonic() > until:
                    return finished
                finished += run_chunk(task, range(done, min(count, done + min(batch, most_pictures(task)))), work, bar.update)
    return finished
