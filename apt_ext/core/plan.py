"""The plan of a job, made once and before it runs: its phases, what acts in each of them, and how many views the model will evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apt_ext.core.borders import NOWHERE, fill_around
from apt_ext.core.dilated import DilatedGrid, dilated_grid
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.interaction import draw_permutations
from apt_ext.core.noise_levels import scale_aware_sigmas, unscaled_sigma
from apt_ext.core.paths import DilatedPath, LocalPath, Permutations
from apt_ext.core.phases import Phase, base_size, plan_phases
from apt_ext.core.types import Around, ModelFacts, Size
from apt_ext.core.views import ViewCalls
from apt_ext.core.weights import PathWeights, cosine_weights, path_shares
from apt_ext.core.windows import Window, draw_starts, draw_windows
from apt_ext.options import PRESETS, Options, blur_std

__all__ = ["PhaseSetup", "Plan", "ViewCount", "demofusion_views", "make_plan", "window_size"]


class ViewCount(NamedTuple):
    """Views that the model evaluates, per picture and before guidance doubles them."""

    local: int
    dilated: int


def window_size(options: Options, model: ModelFacts) -> Size:
    """(rows, columns) of a job's local windows in latent pixels: the model's native size, or what was asked for. A smaller picture cuts them.

    Raises:
        ValueError: for a size that the model cannot take.
    """
    asked = options.window_pixels()
    if asked is None:
        return model.window
    unit = model.factor * model.multiple
    if any(side % unit for side in asked):
        fits = "x".join(str(max(1, round(side / unit)) * unit) for side in asked)
        raise ValueError(f"Window {options.window!r} does not fit this model, whose windows have sides that are multiples of {unit} pixels; use {fits}")
    return Size(asked[1] // model.factor, asked[0] // model.factor)


@dataclass(frozen=True)
class PhaseSetup:
    """What acts in one phase of a job.

    Attributes:
        phase: its number, size and scale.
        options: of the method.
        model: what is known of the model.
        seed: of the jitter and the window interaction.
        around: the axes along which the picture is seamless.
    """

    phase: Phase
    options: Options
    model: ModelFacts
    seed: int
    around: Around = NOWHERE

    @cached_property
    def window(self) -> Size:
        """Of the local windows."""
        return window_size(self.options, self.model)

    @property
    def fill(self) -> str:
        """What lies beyond the border."""
        return fill_around(self.options.fill, self.around)

    @cached_property
    def _where(self) -> dict[str, Any]:
        """The arguments of `draw_starts`, besides the step. Each phase jitters by itself."""
        own = self.options
        where = {"overlap": own.overlap, "jitter": own.jitter, "border": own.border, "around": self.around}
        return {"size": self.phase.size, "window": self.window, "seed": self.seed * 4096 + self.phase.number, **where}

    def windows(self, step: int) -> list[Window]:
        """The local windows of a step."""
        return draw_windows(step, **self._where)

    def window_count(self, step: int) -> int:
        """How many they are."""
        rows, columns = draw_starts(step, **self._where)
        return len(rows) * len(columns)

    @cached_property
    def grid(self) -> DilatedGrid | None:
        """The dilated views; None where the method has none."""
        if self.options.method == "multidiffusion":
            return None
        return dilated_grid(self.phase.size, self.phase.dilation, self.fill, self.model.multiple)

    def levels(self, sigmas: Tensor) -> Tensor:
        """The plan's noise levels -> those of this phase, by Scale-aware Scheduling."""
        return scale_aware_sigmas(sigmas, self.phase.scale, self.options.gamma, self.model.sigma_max)

    def weights_before(self, sigma: float) -> PathWeights:
        """c1, c2, c3 at a noise level of the plan, before Scale-aware Scheduling, where they are taken."""
        own = self.options
        return cosine_weights(self.model.timestep(sigma), (own.residual_decay, own.dilated_decay, own.blur_decay))

    def weights(self, sigma: float) -> PathWeights:
        """c1, c2, c3 at a noise level of this phase."""
        return self.weights_before(unscaled_sigma(sigma, self.phase.scale, self.options.gamma, self.model.sigma_max))

    def permutations(self, step: int) -> Permutations:
        """The window interaction of a step."""
        generator = torch.Generator().manual_seed((self.seed * 4096 + self.phase.number) * 65536 + step)

        def draw(views: slice, shape: tuple[int, ...]) -> Tensor:
            # One exchange for all samples: prompt and negative prompt must see the same, and a picture the same as if it were alone.
            count = views.stop - views.start
            return draw_permutations(count, (1, *shape[1:]), generator).expand(count, *shape)

        return draw

    def fuse(self, calls: ViewCalls, step: Callable[[], int]) -> FusedDenoiser:
        """The fused denoiser of the phase. `step`: tells the number of the current step."""
        own = self.options
        local = LocalPath(self.windows, self.fill, own.feather)
        interacting = self.permutations if own.method == "accdiffusion" else None
        dilated = None if self.grid is None else DilatedPath(self.grid, blur_std(own), interacting)
        return FusedDenoiser(calls, local, dilated, self.weights, step=step, tolerance=own.tolerance)

    def views(self, sigmas: Tensor, calls: Sequence[int], levels: Sequence[Sequence[float]] | None = None) -> list[ViewCount]:
        """The views of every step.

        Args:
            sigmas: (N + 1,) of the plan. `calls`: of the model in each of the N steps.
            levels: of this phase, at which these calls are made, from `call_levels`; where left out, all of a step stand at its own.
        """
        made = []
        for step, ((sigma, _), count) in enumerate(zip(pairwise(sigmas.tolist()), calls, strict=True)):
            weights = [self.weights_before(sigma)] * count if levels is None else [self.weights(level) for level in levels[step]]
            shares = [path_shares(c2, self.options.tolerance) if self.grid else (1.0, 0.0) for _, c2, _ in weights]
            local, dilated = (sum(share > 0 for share in path) for path in zip(*shares, strict=True))
            made.append(ViewCount(local * self.window_count(step) if local else 0, dilated * self.grid.views if self.grid else 0))
        return made


@dataclass(frozen=True)
class Plan:
    """A job before it runs.

    Attributes:
        setups: one for each phase.
        sigmas: (N + 1,) noise levels that a phase runs, before Scale-aware Scheduling.
        calls: of the model in each of the N steps.
        views: [phase][step].
    """

    setups: tuple[PhaseSetup, ...]
    sigmas: Tensor
    calls: tuple[int, ...]
    views: tuple[tuple[ViewCount, ...], ...]

    @property
    def phases(self) -> list[Phase]:
        """The phases alone."""
        return [setup.phase for setup in self.setups]

    @property
    def steps(self) -> int:
        """Of each phase."""
        return len(self.calls)

    @property
    def totals(self) -> list[ViewCount]:
        """Views of each phase."""
        return [ViewCount(sum(view.local for view in views), sum(view.dilated for view in views)) for views in self.views]

    @property
    def evaluations(self) -> int:
        """Views of the whole job."""
        return sum(map(sum, self.totals))


def make_plan(
    start: tuple[int, int],
    target: tuple[int, int],
    options: Options,
    model: ModelFacts,
    sigmas: Tensor,
    calls: Sequence[int],
    seed: int = 0,
    around: Around = NOWHERE,
    levels: Callable[[PhaseSetup], Sequence[Sequence[float]]] | None = None,
) -> Plan:
    """Plan a job.

    Args:
        start, target: (rows, columns) in latent pixels of what is enlarged, and of what is to come out.
        sigmas: (N + 1,) noise levels that a phase runs, from `shortcut_sigmas`, say.
        calls: of the model in each of the N steps, from `step_calls`; those to expect, for a sampler that chooses its own levels.
        seed: of everything that the engine itself draws.
        around: the axes along which the picture is seamless.
        levels: of a phase's calls, see `PhaseSetup.views`.

    Raises:
        ValueError: for phases, or a window, that do not fit.
    """
    window_size(options, model)
    phases = plan_phases(base_size(start, model.window), start, target, options.phase_ratios() or options.phases, model.factor)
    setups = tuple(PhaseSetup(phase, options, model, seed, around) for phase in phases)
    views = (tuple(setup.views(sigmas, calls, levels(setup) if levels else None)) for setup in setups)
    return Plan(setups, sigmas, tuple(calls), tuple(views))


def demofusion_views(start: tuple[int, int], target: tuple[int, int], model: ModelFacts) -> int:
    """Views of a job by DemoFusion as published, the yardstick of every plan: its 50 steps, phase by phase, windows half overlapping, both
    paths evaluated however little one of them weighs. Its last step stands at the model's lowest level, where the dilated path weighs nothing.

    Args:
        start, target: (rows, columns) in latent pixels.

    Source: DemoFusion (Du et al., CVPR 2024): 1024 to 4096 pixels with SDXL at 50 steps takes 50 x (13 + 34 + 65) views.
    """
    published = PRESETS["Published"]
    steps = published.schedule.steps
    # Only whether a path weighs anything counts, not where between the ends a step stands.
    levels = torch.linspace(min(model.sigma_max, 1e3), 1e-6, steps)
    return make_plan(start, target, published.options, model, torch.cat([levels, torch.zeros(1)]), [1] * steps).evaluations
