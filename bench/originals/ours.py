"""The engine's run of the same job, with each of the departures from a published pipeline taken or left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.model import Checkpoint
from apt_ext.checkpoints.window_words import WindowWords
from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.paths import Permutations
from apt_ext.core.phases import Phase
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.upscale import PhaseStart, sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.core.windows import Window
from apt_ext.demo.job import plan_job, show
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.demo.sources import BASE_NOISE, FIRST_STEPS, PHASE_NOISE, PHASE_SAMPLER, stream
from apt_ext.demo.wanted import Conditioned, Source
from bench.originals.theirs import VIEW_BATCH, Record

__all__ = ["DEPARTURES", "Made", "decoded", "run_ours"]

DEPARTURES = {
    "first pass": f"{FIRST_STEPS} steps that end at no noise, and SDXL is told the size of the picture that it makes; theirs: the steps of the phases, which "
    "end at the lowest level, and the size of the last phase",
    "noise": "drawn for each picture and phase from a stream of its own on the CPU; theirs: the process's generators, one after the other",
    "levels": "evenly spaced timesteps from the highest to the lowest and then no noise; theirs: DDIM's, which begin and end a little lower and higher",
    "windows": "the inner ones move together and stay inside the picture; theirs: each by itself, over the border too, and with words of their own only "
    "once for all steps",
    "corners": "a window is told its corner in the picture; theirs: in the picture with the border around it",
    "exchange": "AccDiffusion's exchange of pixels, drawn from a seed for each step; theirs: from the process's generator",
    "words": "a window's words by a short pass over the finished first picture, and whole words; theirs: by all steps of the first pass, token by token",
}
"""What is done otherwise here, whatever the settings are, by name."""


@dataclass
class Made:
    """`latent`: (1, C, H, W). `base`: of the first pass. `after`: of each step of each phase, in the scale of DDIM's latents."""

    latent: Tensor
    base: Tensor
    after: list[list[Tensor]]


@dataclass(frozen=True)
class _Setup(PhaseSetup):
    """A phase that sees the recorded windows, or exchanges pixels as recorded."""

    record: Record | None = None
    ours: frozenset[str] = frozenset()

    @property
    def _pass(self) -> Any:
        assert self.record is not None
        return self.record.passes[self.phase.number]

    def windows(self, step: int) -> list[Window]:
        return super().windows(step) if "windows" in self.ours else self._pass.windows[step]

    def permutations(self, step: int) -> Permutations:
        if "exchange" in self.ours:
            return super().permutations(step)
        generator = torch.Generator().set_state(self._pass.chance[step])

        def draw(views: slice, shape: tuple[int, ...]) -> Tensor:
            count, places = views.stop - views.start, torch.Size(shape[1:])
            drawn = torch.stack([torch.randperm(count, generator=generator) for _ in range(places.numel())])
            return drawn.view(*places, count).permute(3, 0, 1, 2)[:, None]

        return draw

    def fuse(self, calls: ViewCalls, step: Callable[[], int]) -> FusedDenoiser:
        fused = super().fuse(calls, step)
        if "exchange" not in self.ours and fused.dilated is not None:
            fused.dilated = dataclasses.replace(fused.dilated, interaction_group=VIEW_BATCH)
        return fused


class _Words(WindowWords):
    """The recorded words of each window; of another window, those of the nearest."""

    def __init__(self, words: Mapping[Window, str], prompt: str, encoded: Callable[[str], Mapping[str, Tensor]]):
        self.prompt, self.encoded, self._recorded = prompt, encoded, dict(words)

    def text(self, window: Window) -> str:
        nearest = min(self._recorded, key=lambda one: abs(one.top - window.top) + abs(one.left - window.left))
        return self._recorded[nearest]


def _told(inner: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """`inner`, after which SDXL is told other corners of local windows."""

    def condition(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
        cut = inner(extra, batch)
        if not batch.windows:
            return cut
        return {**cut, **{name: {**cut[name], "time_ids": change(cut[name]["time_ids"])} for name in ("prompt", "negative") if name in cut}}

    return condition


def _corners(record: Record, factor: int) -> Callable[[Condition], Condition]:
    """The corners in the picture with the border around it."""

    def around(inner: Condition) -> Condition:
        def condition(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            corners = [[(side + record.beyond) * factor for side in window[:2]] for window in batch.windows]

            def change(ids: Tensor) -> Tensor:
                return torch.cat([ids[:, :2], batch.spread(torch.tensor(corners).to(ids)), ids[:, 4:]], 1)

            return _told(inner, change)(extra, batch)

        return condition

    return around


def _first(model: Checkpoint, job: PromptJob, record: Record, ours: Collection[str]) -> Source:
    """The first pass: `from_words`, with what is to be theirs."""
    own, size = "first pass" in ours, model.first_size
    sigmas = make_sigmas(job.schedule.spacing, FIRST_STEPS, model.sigmas) if own else record.levels.float()
    noise = torch.randn((1, model.channels, *size), generator=torch.Generator().manual_seed(stream(job.seed, BASE_NOISE)))
    n = noise if "noise" in ours else record.passes[0].noise
    made = model.conditioned(job)(None)
    if not own:
        side = float(size.rows * model.factor * job.scale)
        made = _sized(made, (side, side))
    with torch.no_grad():
        # Their state at the first level is noise of unit variance in DDIM's scale; ours is noise of the first level's.
        x = n.to(model.device) * (sigmas[0] if own else (1 + sigmas[0] ** 2).sqrt())
        z = make_sampler(job.schedule.sampler, [0])(made.denoiser, x, sigmas.to(model.device), extra_args=made.extra, callback=lambda info: None)
    z = z * (1 + sigmas[-1] ** 2).rsqrt().to(z)
    return Source(z, z, (size.columns * model.factor, size.rows * model.factor), model.decode(z).cpu())


def _sized(made: Conditioned, side: tuple[float, float]) -> Conditioned:
    def told(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**rows, "time_ids": torch.tensor([[*side, 0, 0, *side]]).to(rows["time_ids"])}

    return made._replace(extra={**made.extra, **{name: told(made.extra[name]) for name in ("prompt", "negative") if name in made.extra}})


def run_ours(model: Checkpoint, job: PromptJob, record: Record, ours: Collection[str]) -> Made:
    """The job as a library call runs it, but for the departures that are left.

    Args:
        ours: names of `DEPARTURES` that are taken; with all of them it is, bit for bit, what `upscale` of the library makes.
        record: of the published pipeline, whose draws and levels stand for the others.
    """
    taken = frozenset(ours)
    source = _first(model, job, record, taken)
    plan = plan_job(model, source, job)
    if "levels" not in taken:
        plan = dataclasses.replace(plan, sigmas=record.levels.float())
    setups = tuple(
        _Setup(**{field.name: getattr(one, field.name) for field in dataclasses.fields(PhaseSetup)}, record=record, ours=taken) for one in plan.setups
    )
    plan = dataclasses.replace(plan, setups=setups, sigmas=plan.sigmas.to(model.device))
    told = job if "words" in taken else dataclasses.replace(job, options=dataclasses.replace(job.options, word_threshold=0.0))
    conditioned = model.conditioned(told, source)
    after: list[list[Tensor]] = []

    def conditions(setup: PhaseSetup, inner: Condition) -> Condition:
        words = record.passes[setup.phase.number].words
        if "words" not in taken and words:
            inner = _Words(words, job.prompt, lambda text: model.words(text, job.negative)[0]).condition(inner)
        return inner if "corners" in taken else _corners(record, model.factor)(inner)

    def noise(phase: Phase, shape: tuple[int, ...]) -> Tensor:
        if "noise" not in taken:
            return record.passes[phase.number].noise
        return torch.randn(shape, generator=torch.Generator().manual_seed(stream(job.seed, PHASE_NOISE, phase.number)))

    def sample(setup: PhaseSetup, start: PhaseStart) -> Tensor:
        made, steps = conditioned(setup), list[Tensor]()
        levels = start.sigmas

        def on_step(info: dict[str, Any]) -> None:
            here, there = levels[info["i"]], levels[info["i"] + 1]
            x = info["denoised"] + (info["x"] - info["denoised"]) * (there / here)
            steps.append(x * (1 + there**2).rsqrt())

        calls = ViewCalls(made.denoiser, job.options.window_batch, conditions(setup, made.condition))
        walk = sample_with(
            calls,
            lambda phase: make_sampler(job.schedule.sampler, [stream(job.seed, PHASE_SAMPLER, phase.number)]),
            noise,
            model_calls=plan.calls,
            extra=made.extra,
            on_step=on_step,
        )
        x = walk(setup, start)
        after.append(steps)
        return x * (1 + levels[-1] ** 2).rsqrt()  # DDIM's scale, which differs where a little noise is left

    with torch.no_grad():
        z = upscale(source.latent, source.base, plan, sample)
    return Made(z, source.base, after)


def decoded(model: Checkpoint, base: Tensor, latent: Tensor) -> Image.Image:
    """A last latent as this project decodes it, without a colour fix. `base`: of the same picture."""
    side = (base.shape[-1] * model.factor, base.shape[-2] * model.factor)
    source = Source(base, base, side, torch.empty(1, 3, side[1], side[0]))
    return show(model, source, latent.float(), latent.shape[-1] / base.shape[-1])
