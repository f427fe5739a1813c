"""One run of the benchmark: a setting on a set of pictures at one scale. What it will do, before it is done."""

from __future__ import annotations

from dataclasses import dataclass

from apt_ext.core.windows import Window
from apt_ext.demo.job import plan_for
from apt_ext.demo.model import NATIVE
from apt_ext.demo.wanted import Job
from bench.quality.pictures import BenchModel, model_of, style_of, world_digest
from bench.quality.settings import Setting, key_of

__all__ = ["Task", "evaluations", "job_of", "last_windows"]


@dataclass(frozen=True)
class Task:
    """A setting at a linear scale on one of `bench.quality.pictures.SETS`, on its first `count` pictures. The seed is of the noise."""

    setting: Setting
    scale: int
    kind: str
    bench: BenchModel
    count: int
    seed: int = 1

    def _key(self, finished: bool) -> str:
        world = "" if self.kind == "photographs" else world_digest()
        return key_of(self.setting, self.scale, self.kind, world, self.bench.sha256, self.seed, finished=finished)

    @property
    def key(self) -> str:
        """Names the task's finished pictures, whatever their count."""
        return self._key(finished=True)

    @property
    def made_key(self) -> str:
        """Names the pictures before their colours are fixed."""
        return self._key(finished=False)

    @property
    def sampled(self) -> bool:
        """Whether the model runs; the baselines only resize, encode and decode."""
        return self.setting.how == "method"


def job_of(task: Task, number: int) -> Job:
    """The job of one picture, as the command line would run it; every picture has a seed of its own."""
    setting = task.setting
    seed = task.seed * 100_003 + number
    style = style_of(task.kind, number)
    return Job(task.scale, setting.options, setting.schedule, setting.guidance, style=style, seed=seed)


def evaluations(task: Task) -> int:
    """Window evaluations that a task takes per picture, before guidance doubles them."""
    if not task.sampled:
        return 0
    model = model_of(task.bench)
    return plan_for(model.facts, model.sigmas, NATIVE, job_of(task, 0)).evaluations


def last_windows(task: Task, number: int) -> list[Window]:
    """The native windows of a picture's last step; for what has none, where those of the defaults would be."""
    model, job = model_of(task.bench), job_of(task, number)
    plan = plan_for(model.facts, model.sigmas, NATIVE, job)
    return plan.setups[-1].windows(plan.steps - 1)
