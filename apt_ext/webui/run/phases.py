"""The pass itself: the host's own image pass, run once per phase with the engine inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modules import devices, rng, sd_samplers_common, shared
from torch import Tensor

from apt_ext.core.conditioning import Condition
from apt_ext.core.phases import Phase
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.residual import StepMixer
from apt_ext.core.types import Denoiser, Size, size_of
from apt_ext.core.upscale import PhaseStart, phase_residual, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.webui.hosts.attention import hooks_of
from apt_ext.webui.hosts.borders import views_with_borders
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.hosts.host import AtOnce
from apt_ext.webui.hosts.views import ViewsShown
from apt_ext.webui.latents.resizing import resized, resized_conditioning
from apt_ext.webui.run.engine import PhaseRun, window_corners
from apt_ext.webui.run.layout import Layout
from apt_ext.webui.run.progress import Progress
from apt_ext.webui.run.samplers import clock_of
from apt_ext.webui.words.passes import Words
from apt_ext.webui.words.seen import PromptRows
from apt_ext.webui.words.windows import WindowPrompts

__all__ = ["Pass", "run_phases"]


@dataclass(kw_only=True)
class Pass:
    """One run over all phases, of one batch of pictures.

    Attributes:
        p, sampler: the host's.
        layout: from `lay_out`.
        original: the sampler's own `sample_img2img`.
        enlarged: size -> what the first phase begins with.
        upsample: (latent, size) -> what a later phase of that size begins with.
        on_finished: told each finished phase but the last, and its latent.
        on_lost: told the number of the last finished phase and its latent where a later one fails, before the error goes on; 0 is the start.
        words: prompts per window, or None.
        on_checkpoint: told after a phase, and before the next one begins: the refiner may have put another checkpoint in place, or it is gone again.
    """

    p: Any
    sampler: Any
    layout: Layout
    original: Callable[..., Tensor]
    enlarged: Callable[[Size], Tensor]
    upsample: Callable[[Tensor, Size], Tensor]
    on_finished: Callable[[Phase, Tensor], None]
    on_lost: Callable[[int, Tensor], None]
    progress: Progress
    noise_multiplier: float = 1.0
    words: Words | None = None
    on_checkpoint: Callable[[], None] = lambda: None


class _Stopped(Exception):
    """The user has stopped the job; `latent` (B, C, H, W) is the best so far."""

    def __init__(self, latent: Tensor):
        self.latent = latent


def _stopped() -> bool:
    return bool(shared.state.interrupted or shared.state.skipped)


@contextmanager
def _attributes(target: Any, **values: Any) -> Iterator[None]:
    """Within the block, attributes of an instance have other values; afterwards those it had, or none of its own."""
    before = {name: target.__dict__[name] for name in values if name in target.__dict__}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(target, name, before[name])
            else:
                target.__dict__.pop(name, None)


def _halve(p: Any, error: Exception, batch: int) -> int:
    """The window batch after an out-of-memory error."""
    if batch <= 1:
        raise RuntimeError("APT: one window alone does not fit into the GPU's memory; free some memory, use a smaller Window, or --medvram") from error
    devices.torch_gc()
    p.comment(f"APT: out of memory, so the window batch went from {batch} to {batch // 2}. The picture is the same; it takes a little longer.")
    return batch // 2


def _window_prompts(run: Pass, setup: PhaseSetup) -> WindowPrompts | None:
    """The prompts of a phase's windows, all of them encoded."""
    if run.words is None:
        return None
    words, plan, phase = run.words, run.layout.plan, setup.phase
    prompts = WindowPrompts(
        words.seen,
        words.schedules,
        setup.options.word_threshold,
        phase.size,
        words.crop,
        PromptRows(run.sampler.model_wrap_cfg),
        words.encoded,
        around=setup.around,
        regions=setup.options.parts(),
    )
    local = [views.local > 0 for views in plan.views[phase.number - 1]]
    prompts.prepare(plan.calls, setup.windows, local, words.cond)
    if setup is plan.setups[-1]:
        windows = setup.windows(local.index(True) if True in local else 0)
        words.on_windows(windows, prompts.labels(windows))
    return prompts


class _Masks:
    """The job's mask at a phase's size; everything is free where there is none."""

    def __init__(self, p: Any, whole: Tensor, size: Size):
        mask, nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        self.on_p: dict[str, Tensor] = {}
        self._outside = whole
        if mask is not None and nmask is not None:
            self.on_p = {"mask": resized(mask, size, "nearest-exact"), "nmask": resized(nmask, size, "nearest-exact")}
            self._outside = resized(whole, size, "bicubic")

    def inside(self, z_up: Tensor) -> Tensor:
        """(B, C, H, W) with the job's own content where the mask keeps it."""
        return (z_up * self.on_p["nmask"] + self._outside * self.on_p["mask"]).to(z_up.dtype) if self.on_p else z_up


def _noise(run: Pass, z_up: Tensor) -> tuple[Any, Tensor]:
    """The host's noise source for latents like these, and the noise that a phase begins with."""
    p = run.p
    size = {"seed_resize_from_h": p.seed_resize_from_h, "seed_resize_from_w": p.seed_resize_from_w}
    source = rng.ImageRNG(z_up.shape[1:], p.seeds, subseeds=p.subseeds, subseed_strength=p.subseed_strength, **size)
    return source, source.next().to(z_up) * run.noise_multiplier


class _Sampling:
    """How the host's image pass runs a phase: `Sample` of the core.

    Args:
        run: the pass. `whole`, `args`, `steps`, `image_conditioning`: as `run_phases` has them.
    """

    def __init__(self, run: Pass, whole: Tensor, args: tuple[Any, ...], steps: int | None, image_conditioning: Tensor | None):
        self.run, self.whole, self.steps, self.image_conditioning = run, whole, steps, image_conditioning
        self.control, self.hooks = host().control_of(run.p), hooks_of(run.p, shared.sd_model)
        self.args = self.control.prompts(*args)
        self.batch = self.hooks.most(self.control.most(run.layout.plan.setups[0].options.window_batch))  # what memory has taught goes on to the next phase

    def __call__(self, setup: PhaseSetup, start: PhaseStart) -> Tensor:
        """(B, C, H, W) clean latents at the phase's size."""
        run, layout, size = self.run, self.run.layout, setup.phase.size
        masks = _Masks(run.p, self.whole, size)
        start = start._replace(z_up=masks.inside(start.z_up))
        source, noise = _noise(run, start.z_up)
        own = layout.coordinates.rescaled(layout.own, setup.phase.scale, setup.options.gamma, layout.facts.sigma_max)
        clock = clock_of(run.sampler.funcname, layout.coordinates.levels(own, layout.total, layout.last).tolist(), layout.plan.calls)
        mixer = StepMixer(clock, setup.weights, phase_residual(setup, start, noise), layout.coordinates.noised)
        lists: dict[str, Any] = {layout.coordinates.getter: lambda p, steps: own}
        with (
            self.control.phase(size),
            _attributes(run.p, rng=source, **masks.on_p),
            _attributes(run.sampler, **lists),
            views_with_borders(setup.around) as borders,
            host().inside(
                run.sampler.model_wrap_cfg,
                self._inside(setup, mixer, borders),
                AtOnce(self.batch, setup.window),
            ),
        ):
            conditioning = None if self.image_conditioning is None else resized_conditioning(self.image_conditioning, size)
            x = run.original(run.p, start.z_up, noise, *self.args, steps=self.steps, image_conditioning=conditioning)
        if _stopped():
            # Early in a phase the estimate is still a blur: then the picture that the phase began with is the better one.
            raise _Stopped(x if 2 * (clock.step + 1) > layout.plan.steps else start.z_up)
        clock.finish()
        return x

    def _inside(self, setup: PhaseSetup, mixer: StepMixer, borders: Callable[[Condition], Condition]) -> PhaseRun:
        """The engine of a phase, for the sampler's denoiser."""
        run, clock = self.run, mixer.clock

        def on_views(count: int) -> None:
            if inside.counted:
                run.progress.done(clock.step, count)
            if _stopped():
                raise sd_samplers_common.InterruptedException

        def on_memory(error: Exception, used: int) -> int:
            self.batch = _halve(run.p, error, used)
            return self.batch

        corner, offset = host().crop_embedding(shared.sd_model), (int(shared.opts.sdxl_crop_top), int(shared.opts.sdxl_crop_left))
        corners = window_corners(corner, offset, arguments=host().arguments)
        prompts = _window_prompts(run, setup)
        shown = ViewsShown(self.hooks.around)
        condition = borders(shown.condition(self.control.condition(prompts.condition(corners) if prompts else corners)))

        def fuse(model: Denoiser) -> Any:
            return setup.fuse(ViewCalls(shown.model(model), self.batch, condition, on_views), lambda: clock.step)

        inside = PhaseRun(
            run.layout.coordinates,
            mixer,
            fuse,
            on_memory=on_memory,
            prompts=prompts,
            called=run.layout.called,
            parts_of=host().parts_of,
            on_call=self.hooks.begin,
        )
        return inside


def run_phases(run: Pass, z: Tensor, whole: Tensor, args: tuple[Any, ...], steps: int | None, image_conditioning: Tensor | None) -> Tensor:
    """Take latents through all phases by the host's own image pass.

    Args:
        z: (B, C, h, w) clean latents to start from; also the reference of the statistics.
        whole: (B, C, H, W) what the host would have started from: the target size, and the content outside a mask.
        args: the conditioning and unconditional conditioning. `steps`, `image_conditioning`: as the host gave them.

    Returns:
        (B, C, H, W). After an interruption, the best so far at that size.
    """
    target, plan = size_of(whole), run.layout.plan
    done, last = 0, z
    first = host().first_checkpoint(run.p, run.sampler.model_wrap_cfg)

    def upsample(latent: Tensor, size: Size) -> Tensor:
        run.progress.begin(plan.phases[done])
        first.restore()
        run.on_checkpoint()
        return run.upsample(latent, size) if done else run.enlarged(size)

    def on_finished(setup: PhaseSetup, start: PhaseStart, latent: Tensor) -> None:
        nonlocal done, last
        done, last = setup.phase.number, latent
        run.on_checkpoint()
        if setup.phase.size != target:
            run.on_finished(setup.phase, latent)

    sample = _Sampling(run, whole, args, steps, image_conditioning)
    try:
        out = upscale(z, z, plan, sample, upsample=upsample, on_finished=on_finished)
    except _Stopped as stopped:
        out = stopped.latent
    except Exception:
        run.on_lost(done, last)
        raise
    finally:
        run.on_checkpoint()
        run.progress.end()
    return resized(out, target, "bicubic")
