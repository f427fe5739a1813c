"""One run of the benchmark: a setting on one kind of base at one scale, in batches of pictures, each picture measured by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apt_ext.core.cost import job_cost
from apt_ext.core.evaluations import evaluations_per_step
from apt_ext.core.phases import Phase, plan_phases
from apt_ext.core.schedule import shortcut_sigmas
from apt_ext.core.upscale import ModelFacts, PhaseReport, PhaseStart, enlarge, phase_starts, upscale
from apt_ext.core.windows import Window, draw_windows
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.model import NATIVE
from apt_ext.demo.samplers import make_sampler, make_sigmas
from bench import measures
from bench.kernel import features
from bench.pictures import PIXELS, Bases, BenchModel, load_bases, true_pictures
from bench.settings import Setting, key_of

__all__ = ["Results", "Task", "evaluations", "load_results", "most_pictures", "run_chunk", "store_results"]

Results = dict[str, NDArray[Any]]
"""Values of a task by name; the first dimension of each counts the pictures, from number 0."""


@dataclass(frozen=True)
class Task:
    """A setting at a linear scale on one of `bench.pictures.KINDS`. The seed is of the noise; the bases do not depend on it."""

    setting: Setting
    scale: int
    base: str
    bench: BenchModel
    seed: int

    @property
    def key(self) -> str:
        """Names the task's results."""
        return key_of(self.setting, self.scale, self.base, self.bench.sha256, self.seed)

    @property
    def sampled(self) -> bool:
        """Whether the model runs; the baselines only decode."""
        return self.setting.how in ("windows", "whole")


class Plan(NamedTuple):
    """A task's phases, its whole noise schedule, what the engine is told of the model, and its evaluations per picture, in native windows."""

    phases: list[Phase]
    sigmas: Tensor
    facts: ModelFacts
    evaluations: int


def _plan(task: Task) -> Plan:
    setting, model = task.setting, task.bench.model
    target = (NATIVE[0] * task.scale, NATIVE[1] * task.scale)
    phases = plan_phases(NATIVE, NATIVE, target, setting.options.phase_ratios() or setting.options.phases)
    sigmas = make_sigmas(setting.schedule, setting.options.steps, model.sigmas)
    facts = model.facts._replace(window=target) if setting.how == "whole" else model.facts
    cost = job_cost(phases, setting.options, facts, sigmas, evaluations_per_step(setting.sampler), task.seed) if task.sampled else []
    return Plan(phases, sigmas, facts, sum(phase.evaluations for phase in cost) * _area(facts))


def _area(facts: ModelFacts) -> int:
    """Native windows that one of these windows is as large as."""
    return facts.window[0] * facts.window[1] // (NATIVE[0] * NATIVE[1])


def evaluations(task: Task) -> int:
    """Window evaluations that a task takes per picture, before guidance doubles them."""
    return _plan(task).evaluations


def most_pictures(task: Task) -> int:
    """Pictures that may share a batch: the measured exponent is each picture's own."""
    return 1 if task.setting.options.gamma == "auto" else 10**9


def _noise(seed: int, numbers: Sequence[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Each picture's own noise, whatever the batch: (B, C, H, W)."""
    generators = [torch.Generator().manual_seed(_stream_seed(seed, number, stream)) for number in numbers]
    return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])


def _stream_seed(seed: int, number: int, stream: int) -> int:
    """Even streams are a phase's starting noise, odd ones its sampler's."""
    return (seed * 1_000_003 + number) * 4096 + stream


class Made(NamedTuple):
    """A batch of large pictures: (B, 3, H, W), their latents, and for each picture the curve of the monotonicity over (phase, step)."""

    pictures: Tensor
    latent: Tensor
    seconds: float
    evaluations: int
    curve: Tensor
    curve_phase: list[int]


def _sample(task: Task, bases: Bases, on_evaluations: Any) -> Made:
    """Run the method. `on_evaluations` is told the window evaluations done, over all pictures, guidance included."""
    setting, model, plan = task.setting, task.bench.model, _plan(task)
    curve: list[Tensor] = []
    curve_phase: list[int] = []
    current, done = 0, 0
    batch, passes = len(bases.numbers), 1 if setting.guidance == 1 else 2

    def on_phase(phase: Phase, start: PhaseStart) -> None:
        nonlocal current
        current = phase.number

    def on_step(info: dict[str, Any]) -> None:
        curve.append(measures.monotonicity(info["denoised"], NATIVE[0]))
        curve_phase.append(current)

    def on_finished(report: PhaseReport) -> None:
        nonlocal done
        done += report.evaluations * _area(plan.facts)

    started = time.perf_counter()
    latent = upscale(
        model.denoiser(setting.guidance),
        bases.latent,
        bases.latent,
        plan.phases,
        setting.options,
        plan.facts,
        sampler=lambda number: make_sampler(setting.sampler, [_stream_seed(task.seed, n, 2 * number + 1) for n in bases.numbers]),
        evaluations=evaluations_per_step(setting.sampler),
        sigmas=plan.sigmas,
        noise=lambda phase, shape: _noise(task.seed, bases.numbers, 2 * phase.number, shape),
        seed=task.seed,
        extra={"style": bases.style},
        on_phase=on_phase,
        on_step=on_step,
        on_views=lambda views: on_evaluations(views * batch * passes * _area(plan.facts)),
        on_finished=on_finished,
    )
    seconds = time.perf_counter() - started
    return Made(model.decode(latent), latent, seconds, done, torch.stack(curve, 1), curve_phase)


def _look_up(task: Task, bases: Bases, work: Path) -> Made:
    """A baseline, which takes no sampling: the enlarged base latent, or the true picture with or without the autoencoder."""
    model, size = task.bench.model, (NATIVE[0] * task.scale, NATIVE[1] * task.scale)
    none = torch.zeros((len(bases.numbers), 0))
    if task.setting.how == "bicubic":
        latent = enlarge(bases.latent, size)
        return Made(model.decode(latent), latent, 0.0, 0, none, [])
    true = true_pictures(task.base, bases.numbers, PIXELS * task.scale, work)
    latent = model.encode(true)
    return Made(true if task.setting.how == "render" else model.decode(latent), latent, 0.0, 0, none, [])


def _last_windows(task: Task) -> list[Window]:
    """The native windows of a task's last step; for what has none, where those of the defaults would be."""
    plan, options = _plan(task), task.setting.options
    steps = len(shortcut_sigmas(plan.sigmas, options.shortcut)) - 1
    return draw_windows(steps - 1, **phase_starts(plan.phases[-1], options, task.bench.model.facts, task.seed))


def _by_picture(rows: Tensor, count: int) -> Tensor:
    """(B * k, F) -> (B, k, F)."""
    return rows.reshape(count, -1, rows.shape[1])


@torch.no_grad()
def run_chunk(task: Task, numbers: Sequence[int], work: Path, on_evaluations: Any = lambda count: None) -> Results:
    """Make and measure the pictures with these numbers."""
    bases = load_bases(task.base, task.bench, numbers, work)
    made = _sample(task, bases, on_evaluations) if task.sampled else _look_up(task, bases, work)
    pictures, count = made.pictures, len(numbers)
    # A generated base has no truth; what its shapes and their places should be is seen in the base itself.
    enlarged = enlarge(bases.picture, (pictures.shape[-2], pictures.shape[-1]))
    likeness = enlarged if task.base == "generated" else true_pictures(task.base, numbers, pictures.shape[-1], work)
    shift = measures.shift(made.latent, bases.latent)
    values = {
        "windows": _by_picture(features(measures.cut(pictures, PIXELS).flatten(0, 1)), count),
        "whole": _by_picture(features(measures.shrink(pictures, PIXELS)), count),
        "spectrum": measures.log_spectrum(pictures),
        "shift_mean": shift[:, 0],
        "shift_std": shift[:, 1],
        "shift_std_min": shift[:, 2],
        "monotonicity": measures.monotonicity(made.latent, NATIVE[0]),
        "agreement": measures.agreement(pictures, bases.picture),
        "seams": measures.seams(pictures, _last_windows(task), FACTOR),
        "structure": measures.structure(pictures, likeness, float(task.scale)),
        "repetition": measures.repetition(pictures, PIXELS),
        "curve": made.curve,
        "curve_phase": torch.tensor(made.curve_phase).expand(count, -1),
        "seconds": torch.full((count,), made.seconds / count),
        "evaluations": torch.full((count,), made.evaluations),
    }
    return {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in values.items()}


def _path(task: Task, work: Path) -> Path:
    return work / "results" / f"{task.key}.npz"


def load_results(task: Task, work: Path) -> Results | None:
    """What is there of a task so far."""
    path = _path(task, work)
    if not path.exists():
        return None
    with np.load(path) as file:
        return dict(file)


def store_results(task: Task, results: Results, work: Path) -> None:
    """Write a task's results in one piece, so that a run can be killed at any time."""
    path = _path(task, work)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **results)
    part.replace(path)
