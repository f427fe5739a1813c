"""Making: a task's large latents, each picture with noise of its own, so that it does not depend on its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ext.core.evaluations import evaluations_per_step
from apt_ext.core.phases import Phase
from apt_ext.core.upscale import PhaseReport, PhaseStart, enlarge, upscale
from apt_ext.demo.model import NATIVE
from apt_ext.demo.samplers import make_sampler
from bench.quality import measures
from bench.quality.pictures import PIXELS, Bases, true_pictures
from bench.quality.store import Results
from bench.quality.tasks import Task, area, passes, plan_of

__all__ = ["make"]


def _noise(seed: int, numbers: Sequence[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Each picture's own noise, whatever the batch: (B, C, H, W)."""
    generators = [torch.Generator().manual_seed(_stream_seed(seed, number, stream)) for number in numbers]
    return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])


def _stream_seed(seed: int, number: int, stream: int) -> int:
    """Even streams are a phase's starting noise, odd ones its sampler's."""
    return (seed * 1_000_003 + number) * 4096 + stream


def _sample(task: Task, bases: Bases, on_evaluations: Callable[[int], object]) -> Results:
    """Run the method. `on_evaluations` is told the window evaluations done, over all pictures, guidance included."""
    setting, model, plan = task.setting, task.bench.model, plan_of(task)
    curve: list[Tensor] = []
    curve_phase: list[int] = []
    current, done = 0, 0
    batch = len(bases.numbers)

    def on_phase(phase: Phase, start: PhaseStart) -> None:
        nonlocal current
        current = phase.number

    def on_step(info: dict[str, Any]) -> None:
        curve.append(measures.monotonicity(info["denoised"], NATIVE[0]))
        curve_phase.append(current)

    def on_finished(report: PhaseReport) -> None:
        nonlocal done
        done += report.evaluations * area(plan.facts)

    def on_views(views: int) -> None:
        on_evaluations(views * batch * passes(task) * area(plan.facts))

    rows = 0

    def on_rows(network: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    started = time.perf_counter()
    with model.unet.register_forward_pre_hook(on_rows):
        latent = upscale(
            model.denoiser(setting.guidance, setting.guided_above),
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
            on_views=on_views,
            on_finished=on_finished,
        )
    seconds = time.perf_counter() - started
    # Where there is guidance, the network's passes are another number than the evaluations of windows.
    guided = {} if setting.guidance == 1 else {"passes": np.full(batch, rows // batch * area(plan.facts))}
    return {
        **guided,
        "latent": latent.float().numpy(),
        "curve": torch.stack(curve, 1).float().numpy(),
        "curve_phase": np.tile(curve_phase, (batch, 1)),
        "seconds": np.full(batch, seconds / batch, np.float32),
        "evaluations": np.full(batch, done),
    }


def _look_up(task: Task, bases: Bases, work: Path) -> Results:
    """A baseline, which takes no sampling: the enlarged base latent, or the encoded true picture."""
    size, batch = (NATIVE[0] * task.scale, NATIVE[1] * task.scale), len(bases.numbers)
    bicubic = task.setting.how == "bicubic"
    latent = enlarge(bases.latent, size) if bicubic else task.bench.model.encode(true_pictures(task.base, bases.numbers, PIXELS * task.scale, work))
    none = np.zeros((batch, 0), np.float32)
    return {"latent": latent.numpy(), "curve": none, "curve_phase": none, "seconds": np.zeros(batch, np.float32), "evaluations": np.zeros(batch, np.int64)}


@torch.no_grad()
def make(task: Task, bases: Bases, work: Path, on_evaluations: Callable[[int], object] = lambda count: None) -> Results:
    """The large pictures' latents, what they cost, and the curve of the monotonicity of the denoised estimate over the steps of all phases.

    Args:
        on_evaluations: told the window evaluations done, over all pictures, guidance included.
    """
    return _sample(task, bases, on_evaluations) if task.sampled else _look_up(task, bases, work)
