"""What a job will cost, before it starts: views that the model evaluates, from the very windows and weights of the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from apt_ext.core.clock import calls_per_step
from apt_ext.core.fused import dilated_due
from apt_ext.core.phases import Phase, Size, base_size, plan_phases
from apt_ext.core.schedule import path_shares, shortcut_sigmas
from apt_ext.core.upscale import ModelFacts, phase_grid, phase_starts, phase_weights
from apt_ext.core.windows import draw_starts
from apt_ext.options import PUBLISHED, Options

__all__ = ["PhaseCost", "demofusion_views", "job_cost", "phase_cost", "phase_views"]


class PhaseCost(NamedTuple):
    """Views that the model evaluates in one phase, per picture and before guidance doubles them."""

    phase: Phase
    steps: int
    local: int
    dilated: int

    @property
    def evaluations(self) -> int:
        """Of both paths together."""
        return self.local + self.dilated


def phase_views(phase: Phase, options: Options, model: ModelFacts, sigmas: Tensor, evaluations: int | Sequence[int], seed: int = 0) -> list[tuple[int, int]]:
    """The views of a phase's every step, (local, dilated).

    Exact for samplers that call the model once a step. A second call's noise level is not known before the run; it is counted at
    its step's own, which can differ only at the step where a path falls under the tolerance.

    Args:
        sigmas: (N + 1,) the whole unchanged schedule. `evaluations`: model calls per step; a sequence gives each step's own.
    """
    rest = shortcut_sigmas(sigmas, options.shortcut).tolist()
    where, grid = phase_starts(phase, options, model, seed), phase_grid(phase, options, model)
    # The weights belong to the unchanged noise levels, so the exponent of the schedule does not matter here.
    weights = phase_weights(phase, options, model, 0.0)
    views, held = [], False
    for step, ((sigma, _), calls) in enumerate(zip(pairwise(rest), calls_per_step(rest, evaluations), strict=True)):
        share_local, share_dilated = path_shares(weights(sigma).c2, options.tolerance) if grid else (1.0, 0.0)
        rows, columns = draw_starts(step, **where) if share_local else ([], [])
        due = share_dilated > 0 and (not share_local or not held or dilated_due(step, options.dilated_every))
        held = held or (due and share_local > 0)
        views.append((calls * len(rows) * len(columns), calls * grid.views if grid and due else 0))
    return views


def phase_cost(phase: Phase, options: Options, model: ModelFacts, sigmas: Tensor, evaluations: int | Sequence[int], seed: int = 0) -> PhaseCost:
    """Count one phase's views; the arguments are those of `phase_views`."""
    views = phase_views(phase, options, model, sigmas, evaluations, seed)
    return PhaseCost(phase, len(views), sum(local for local, _ in views), sum(dilated for _, dilated in views))


def job_cost(phases: Sequence[Phase], options: Options, model: ModelFacts, sigmas: Tensor, evaluations: int | Sequence[int], seed: int = 0) -> list[PhaseCost]:
    """`phase_cost` of every phase."""
    return [phase_cost(phase, options, model, sigmas, evaluations, seed) for phase in phases]


def demofusion_views(start: Size, target: Size, model: ModelFacts) -> int:
    """Views of a job by DemoFusion as published, the yardstick of every plan: its 50 steps, phase by phase, windows half overlapping, both
    paths evaluated however little one of them weighs. Its last step stands at the model's lowest level, where the dilated path weighs nothing.

    Args:
        start, target: (rows, columns) in latent pixels.

    Source: DemoFusion (Du et al., CVPR 2024): 1024 to 4096 pixels with SDXL at 50 steps takes 50 x (13 + 34 + 65) views.
    """
    options = Options(**PUBLISHED)
    # Only whether a path weighs anything counts, not where between the ends a step stands.
    levels = torch.linspace(min(model.sigma_max, 1e3), 1e-6, options.steps)
    phases = plan_phases(base_size(start, model.window), start, target, options.phases)
    return sum(cost.evaluations for cost in job_cost(phases, options, model, torch.cat([levels, torch.zeros(1)]), 1))
