"""One run of the benchmark: a setting on one kind of base at one scale. What it will do, before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from apt_ext.core.cost import job_cost
from apt_ext.core.evaluations import evaluations_per_step
from apt_ext.core.phases import Phase, plan_phases
from apt_ext.core.upscale import ModelFacts
from apt_ext.demo.model import NATIVE
from apt_ext.demo.samplers import make_sigmas
from bench.quality.pictures import BenchModel
from bench.quality.settings import Setting, key_of

__all__ = ["Plan", "Task", "area", "evaluations", "most_pictures", "passes", "plan_of"]


@dataclass(frozen=True)
class Task:
    """A setting at a linear scale on one of `bench.quality.pictures.KINDS`. The seed is of the noise; the bases do not depend on it."""

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


def plan_of(task: Task) -> Plan:
    """Lay a task out."""
    setting, model = task.setting, task.bench.model
    target = (NATIVE[0] * task.scale, NATIVE[1] * task.scale)
    phases = plan_phases(NATIVE, NATIVE, target, setting.options.phase_ratios() or setting.options.phases)
    sigmas = make_sigmas(setting.schedule, setting.options.steps, model.sigmas)
    facts = model.facts._replace(window=target) if setting.how == "whole" else model.facts
    cost = job_cost(phases, setting.options, facts, sigmas, evaluations_per_step(setting.sampler), task.seed) if task.sampled else []
    return Plan(phases, sigmas, facts, sum(phase.evaluations for phase in cost) * area(facts))


def area(facts: ModelFacts) -> int:
    """Native windows that one of these windows is as large as."""
    return facts.window[0] * facts.window[1] // (NATIVE[0] * NATIVE[1])


def evaluations(task: Task) -> int:
    """Window evaluations that a task takes per picture, before guidance doubles them."""
    return plan_of(task).evaluations


def most_pictures(task: Task) -> int:
    """Pictures that may share a batch: the measured exponent is each picture's own."""
    return 1 if task.setting.options.gamma == "auto" else 10**9


def passes(task: Task) -> int:
    """Model evaluations of a window at most: guidance takes two."""
    return 1 if task.setting.guidance == 1 else 2
