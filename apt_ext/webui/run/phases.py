"""The pass itself: the host's own image pass, run once per phase with the engine inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from modules import devices, rng, sd_samplers_common, shared
from torch import Tensor

from apt_ext.core.cost import phase_views
from apt_ext.core.phases import Phase, Size, base_size, plan_phases
from apt_ext.core.schedule import scale_aware_sigmas
from apt_ext.core.upscale import ModelFacts, PhaseStart, finish_phase, phase_fused, phase_hold, phase_residual, phase_starts, phase_weights, start_phase
from apt_ext.core.windows import Window, draw_windows
from apt_ext.options import Options, has_residual
from apt_ext.webui.latents.resizing import resized, resized_conditioning
from apt_ext.webui.model import crop_embedding, facts_of
from apt_ext.webui.page.settings import native_side
from apt_ext.webui.run.engine import PhaseRun, fused_inside, window_corners
from apt_ext.webui.run.progress import Progress
from apt_ext.webui.run.samplers import Coordinates, check_sampler, clock_of, coordinates_of, model_calls
from apt_ext.webui.words.seen import PromptRows, Schedules, Seen
from apt_ext.webui.words.windows import Crop, Encodings, WindowPrompts

__all__ = ["Layout", "Pass", "Words", "lay_out", "run_phases"]

JITTER_SEED = 0  # the same windows for every picture, or a picture in a batch would differ from the same one alone


@dataclass(frozen=True)
class Layout:
    """A job before it runs.

    Attributes:
        start: (rows, columns) it begins at. `phases`: the sizes it goes through. `facts`: of the checkpoint.
        options: of the method, with the steps and the shortcut that the host's fields gave already taken out of the schedule.
        own: the sampler's own list of noise levels. `sigmas`: (N + 1,) of the steps that a phase runs. `calls`: of the model, step by step.
        total, last: see `Coordinates.levels`.
        views: (local, dilated) of every step of every phase.
    """

    start: Size
    phases: list[Phase]
    facts: ModelFacts
    options: Options
    coordinates: Coordinates
    own: Tensor
    sigmas: Tensor
    calls: list[int]
    total: int
    last: int
    views: list[list[tuple[int, int]]]


def lay_out(p: Any, sampler: Any, options: Options, start: Size, target: Size, steps: int | None) -> Layout:
    """Everything about a pass that is known before it begins.

    Args:
        p: the processing object; its denoising strength and its schedule are the pass's.
        sampler: an instance of the host's. `start`, `target`: (rows, columns) in latent pixels.
        steps: the hires pass's steps; None for img2img, where the denoising strength takes its share of `p.steps`.

    Raises:
        ValueError: where something of it cannot be done.
    """
    check_sampler(sampler.config.name, sampler.funcname, has_residual(options))
    model = shared.sd_model
    coordinates = coordinates_of(sampler.funcname, model.alphas_cumprod)
    table = getattr(sampler.model_wrap, "sigmas", None)
    facts = facts_of(model, coordinates.sigmas if table is None else table.cpu(), native_side(model))  # type: ignore[attr-defined]
    phases = plan_phases(base_size(start, facts.window), start, target, options.phase_ratios() or options.phases)
    if p.denoising_strength is None:
        raise ValueError("denoising strength is not given; it says how much of the schedule each phase runs, try 0.6")
    total, last = sd_samplers_common.setup_img2img_steps(p, steps)
    if total < 1:
        raise ValueError(f"denoising strength {p.denoising_strength} leaves no step to run; use one above 0")
    own = getattr(sampler, coordinates.getter)(p, total)
    sigmas = coordinates.levels(own, total, last)
    calls = model_calls(sampler.config.name, sampler.funcname, sigmas.tolist())
    inside = dataclasses.replace(options, shortcut=1.0)
    views = [phase_views(phase, inside, facts, sigmas, calls, JITTER_SEED) for phase in phases]
    return Layout(start, phases, facts, inside, coordinates, own, sigmas, calls, total, last, views)


@dataclass
class Words:
    """Prompts per window, for one pass.

    Attributes:
        seen: where the words are. `crop`: what this pass shows of what was seen.
        cond: the host's conditioning of this pass. `schedules`: its texts. `encoded`: of the job.
        on_windows: told the last phase's windows at its first step and, for each picture, what each of them keeps.
    """

    seen: Seen
    cond: Any
    schedules: Schedules
    crop: Crop
    encoded: Encodings
    on_windows: Callable[[list[Window], list[list[str]]], None]


@dataclass
class Pass:
    """One run over all phases, of one batch of pictures.

    Attributes:
        p, sampler: the host's. `layout`: from `lay_out`.
        original: the sampler's own `sample_img2img`.
        enlarged: size -> what the first phase begins with. `upsample`: (latent, size) -> what a later phase of that size begins with.
        on_finished: told each finished phase but the last, and its latent.
        words: prompts per window, or None.
        on_lost: told the number of the last finished phase and its latent where a later one fails, before the error goes on; 0 is the start.
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
        raise RuntimeError(
            "APT: one window alone does not fit into the GPU's memory; free some memory, use a smaller native window in the settings, or --medvram"
        ) from error
    devices.torch_gc()
    p.comment(f"APT: out of memory, so the window batch went from {batch} to {batch // 2}. The picture is the same; it takes a little longer.")
    return batch // 2


def _window_prompts(run: Pass, phase: Phase, options: Options) -> WindowPrompts | None:
    """The prompts of a phase's windows, all of them encoded."""
    if run.words is None:
        return None
    words, layout, where = run.words, run.layout, phase_starts(phase, options, run.layout.facts, JITTER_SEED)
    prompts = WindowPrompts(words.seen, words.schedules, options.words, phase.size, words.crop, PromptRows(run.sampler.model_wrap_cfg), words.encoded)
    local = [views > 0 for views, _ in layout.views[phase.number - 1]]
    prompts.prepare(layout.calls, lambda step: draw_windows(step, **where), local, words.cond)
    if phase == layout.phases[-1]:
        windows = draw_windows(local.index(True) if True in local else 0, **where)
        words.on_windows(windows, prompts.labels(windows))
    return prompts


def _phase_run(
    run: Pass, phase: Phase, start: PhaseStart, noise: Tensor, own: Tensor, options: Options, resolved: Size, free: Tensor | None
) -> tuple[PhaseRun, list[int]]:
    """The engine for one phase, and the window batch that it ends with (in a list, for it may shrink). `resolved`, `free`: see `phase_hold`."""
    layout, p = run.layout, run.p
    clock = clock_of(run.sampler.funcname, layout.coordinates.levels(own, layout.total, layout.last).tolist(), layout.calls)
    batch = [options.window_batch]

    def on_views(count: int) -> None:
        run.progress.done(clock.step, count)
        if _stopped():
            raise sd_samplers_common.InterruptedException

    def on_memory(error: Exception, used: int) -> int:
        batch[0] = _halve(p, error, used)
        return batch[0]

    condition = window_corners(crop_embedding(shared.sd_model), (int(shared.opts.sdxl_crop_top), int(shared.opts.sdxl_crop_left)))
    prompts = _window_prompts(run, phase, options)
    fuse = partial(
        phase_fused,
        gamma=start.gamma,
        phase=phase,
        options=options,
        model=layout.facts,
        step=lambda: clock.step,
        seed=JITTER_SEED,
        condition=prompts.condition(condition) if prompts else condition,
        on_views=on_views,
    )
    weights = phase_weights(phase, options, layout.facts, start.gamma)
    residual, hold = phase_residual(start, noise, options), phase_hold(start, options, resolved, free)
    return PhaseRun(layout.coordinates, clock, fuse, weights, residual, run.progress.show, on_memory, prompts, hold), batch


def run_phases(run: Pass, z: Tensor, whole: Tensor, args: tuple[Any, ...], steps: int | None, image_conditioning: Tensor | None) -> Tensor:
    """Take latents through all phases by the host's own image pass.

    Args:
        z: (B, C, h, w) clean latents to start from; also the reference of the statistics.
        whole: (B, C, H, W) what the host would have started from: the target size, and the content outside a mask.
        args: the conditioning and unconditional conditioning. `steps`, `image_conditioning`: as the host gave them.

    Returns:
        (B, C, H, W). After an interruption, the best so far at that size.
    """
    p, sampler, layout = run.p, run.sampler, run.layout
    reference, options = z, layout.options
    mask, nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
    if mask is not None and options.reanchor == "auto":
        # What is kept outside the mask has statistics of its own, which must not move with the rest.
        options = dataclasses.replace(options, reanchor="off")
    target = (whole.shape[-2], whole.shape[-1])
    done = 0
    try:
        for phase in layout.phases:
            run.progress.begin(phase)
            resolved = (z.shape[-2], z.shape[-1])
            z_up = run.enlarged(phase.size) if phase.number == 1 else run.upsample(z, phase.size)
            start = start_phase(z_up, reference, phase, options, layout.sigmas, layout.facts)
            masks: dict[str, Tensor] = {}
            free = None
            if mask is not None and nmask is not None:
                small, small_n = resized(mask, phase.size, "nearest-exact"), resized(nmask, phase.size, "nearest-exact")
                free = small_n[:1]
                masks = {"mask": small, "nmask": small_n}
                outside = resized(whole, phase.size, "bicubic")
                start = start._replace(z_up=(start.z_up * small_n + outside * small).to(start.z_up.dtype))
            generator = rng.ImageRNG(
                start.z_up.shape[1:],
                p.seeds,
                subseeds=p.subseeds,
                subseed_strength=p.subseed_strength,
                seed_resize_from_h=p.seed_resize_from_h,
                seed_resize_from_w=p.seed_resize_from_w,
            )
            noise = generator.next().to(start.z_up) * run.noise_multiplier
            rescale = partial(scale_aware_sigmas, scale=phase.scale, gamma=start.gamma, sigma_max=layout.facts.sigma_max)
            own = layout.coordinates.rescaled(layout.own, rescale)
            inside, batch = _phase_run(run, phase, start, noise, own, options, resolved, free)
            lists: dict[str, Any] = {layout.coordinates.getter: lambda p, steps, own=own: own, "callback_state": _callback_state(sampler, run.progress)}
            with _attributes(p, rng=generator, **masks), _attributes(sampler, **lists), fused_inside(sampler.model_wrap_cfg, inside):
                conditioning = None if image_conditioning is None else resized_conditioning(image_conditioning, phase.size)
                x = run.original(p, start.z_up, noise, *args, steps=steps, image_conditioning=conditioning)
            options = dataclasses.replace(options, window_batch=batch[0])
            if _stopped():
                # Early in a phase the estimate is still a blur: then the picture that the phase began with is the better one.
                z = x if 2 * (inside.clock.step + 1) > len(layout.calls) else start.z_up
                break
            inside.clock.finish()
            z = finish_phase(x, reference, options).to(start.z_up.dtype)
            done = phase.number
            if phase.size != target:
                run.on_finished(phase, z)
    except Exception:
        run.on_lost(done, z)
        raise
    finally:
        run.progress.end()
    return resized(z, target, "bicubic")


def _callback_state(sampler: Any, progress: Progress) -> Callable[[dict[str, Any]], None]:
    """The host's own per-step callback, with the bar where the whole job is, before it as after it."""

    def callback(info: dict[str, Any]) -> None:
        # The host shows the step's number, which on this bar would be a leap for as long as it draws its own. Only a sampler that is to stop
        # at a step needs the number itself.
        type(sampler).callback_state(sampler, info if sampler.stop_at is not None else info | {"i": shared.state.sampling_step})
        progress.show()

    return callback
