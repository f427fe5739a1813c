"""A job of the host's with APT in it: what is attached to its processing object, and what happens when the host comes by.

Nothing outside this job's own objects is changed. Errors are raised from the host's `init`, which lets them through, unlike its script
callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules import processing, shared
from torch import Tensor

from apt_ext import __version__
from apt_ext.core.borders import NOWHERE
from apt_ext.core.phases import Phase
from apt_ext.core.types import Size, size_of
from apt_ext.webui.errors import refuse
from apt_ext.webui.hosts.attention import check_hooks
from apt_ext.webui.hosts.borders import check_seamless, seamless_axes
from apt_ext.webui.hosts.checkpoint import family_of, native_side
from apt_ext.webui.hosts.detect import check_host, host
from apt_ext.webui.hosts.extensions import HYPERTILE, ended_on_failure, hypertile_aside
from apt_ext.webui.latents import vae
from apt_ext.webui.latents.saving import rescue, save_phase
from apt_ext.webui.latents.sources import hires_sizes_of, hires_start, no_larger, picture_sizes_of, picture_start
from apt_ext.webui.latents.upscalers import LATENT, NONE, hires_upscaler, host_name, resolved
from apt_ext.webui.page.request import Request, infotext
from apt_ext.webui.run.layout import Layout, lay_out, sampler_named
from apt_ext.webui.run.pace import Measuring
from apt_ext.webui.run.phases import Pass, run_phases
from apt_ext.webui.run.progress import Progress, hires_jobs
from apt_ext.webui.state import NAME, Job, job_of, stay
from apt_ext.webui.words.passes import listen, window_words

__all__ = ["attach", "check_ran", "decode_samples", "detach", "forget_infotext", "install"]

HIRES_OFF = "APT is on, but Hires. fix is off, so this picture was made without it. Turn Hires. fix on, or choose 'APT upscale' under Scripts."
TAKEN_OVER = "APT did not run, for another extension has taken the sampling over (Tiled Diffusion, perhaps). Turn one of the two off."
OTHER_TILES = "APT: another extension decodes and encodes in tiles of its own (Tiled VAE of Tiled Diffusion, perhaps), so APT's Tiled VAE stands back."
COLOURS_KEPT = "APT: the colour fix takes brightness and colours from the given picture, so a ControlNet unit cannot change them; for that, set it to 0."


def attach(p: Any, request: Request | Exception) -> None:
    """Put a job onto a processing object, at the beginning of `process_images`; an error instead of a request lets the job fail.

    Attaching again, as scripts do that run one object several times, replaces the job before.
    """
    detach(p)
    is_txt2img = isinstance(p, processing.StableDiffusionProcessingTxt2Img)
    if isinstance(request, Request):
        p.__dict__[NAME] = Job(request)
        if is_txt2img and p.enable_hr:
            _wrap(p, "sample_hr_pass", _sample_hr_pass)
    _wrap(p, "init", partial(_init, request=request))


def detach(p: Any) -> None:
    """Take everything off a processing object again."""
    job = p.__dict__.pop(NAME, None)
    if job is not None and job.named:
        p.hr_upscaler = None
    for name in ("init", "sample_hr_pass"):
        ours = p.__dict__.get(name)
        if hasattr(ours, "apt_original"):
            p.__dict__.pop(name)
            if ours.apt_own:
                p.__dict__[name] = ours.apt_original


def forget_infotext(p: Any) -> None:
    """Take APT's entries out of the infotext: scripts run copies of one processing object that share them. The others keep what they have."""
    p.extra_generation_params = {key: value for key, value in p.extra_generation_params.items() if not key.startswith("APT ")}


def _wrap(p: Any, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(p, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(p, original, *args, **kwargs)

    wrapped.apt_original = original  # type: ignore[attr-defined]
    wrapped.apt_own = name in p.__dict__  # type: ignore[attr-defined]
    p.__dict__[name] = wrapped


def _init(p: Any, original: Callable[..., None], *args: Any, request: Request | Exception) -> None:
    """The host's `init`; then everything that can be refused is, before any sampling."""
    with ended_on_failure(p), host().control_ended_on_failure(p):
        if isinstance(request, Exception):
            refuse(p, request)
        try:
            _check(p, request)
        except ValueError as error:
            refuse(p, error)
        job = job_of(p)
        with vae.tiled_vae(shared.sd_model, request.tiled_vae, NOWHERE if job is None else job.around):
            original(*args)
        if not isinstance(p, processing.StableDiffusionProcessingTxt2Img) or p.enable_hr:
            try:
                _prepare(p, request)
            except ValueError as error:
                refuse(p, error)


def _check(p: Any, request: Request) -> None:
    """What can be told before the host's own `init`, and what it has to be told."""
    check_host()
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img) and not p.enable_hr:
        if p.is_api:
            raise ValueError("Hires. fix is off; set enable_hr to true, or use script_name 'APT upscale'")
        p.comment(HIRES_OFF)
        return
    family_of(shared.sd_model)
    job = job_of(p)
    assert job is not None
    job.around = seamless_axes(shared.sd_model, bool(p.tiling))
    check_hooks(p, shared.sd_model, job.words, any(job.around))
    if Job(request).words and (reason := host().words_refused()):
        raise ValueError(f"words per window cannot be told apart {reason}, or set words per window to 0")
    _choose_upscaler(p, request)


def _choose_upscaler(p: Any, request: Request) -> None:
    """Settle what enlarges: in a hires pass the host's field, where it says something, and elsewhere APT's own setting."""
    job, own = job_of(p), request.options.upscaler
    assert job is not None
    if not isinstance(p, processing.StableDiffusionProcessingTxt2Img):
        # The resize mode "latent upscale" is a choice of the host's too.
        job.own_upscaler = p.resize_mode != 3
        job.upscaler = resolved(own) if job.own_upscaler else LATENT
        return
    if p.hr_upscaler is None:  # the API's default
        p.hr_upscaler, job.named = host_name(own), True
    job.upscaler, job.own_upscaler = hires_upscaler(p, own), p.hr_upscaler == NONE


def _prepare(p: Any, request: Request) -> None:
    """Lay the job out once the host knows the sizes; tell the bar and the infotext."""
    control = host().control_of(p)
    job = job_of(p)
    assert job is not None
    check_seamless(p, job.around)
    hires = isinstance(p, processing.StableDiffusionProcessingTxt2Img)
    start, target = hires_sizes_of(p) if hires else picture_sizes_of(p)
    name = (p.hr_sampler_name or p.sampler_name) if hires else p.sampler_name
    sampler = sampler_named(name)
    p_pass = _as_hires(p) if hires else p
    layout = lay_out(p_pass, sampler, request.options, start, target, (p.hr_second_pass_steps or p.steps) if hires else None, job.around)
    _announce(p, job, layout, hires)
    _write_infotext(p, job)
    if request.save_phases and not p.save_samples():
        p.comment("APT: phases are saved where pictures are, and saving pictures is off (in the API: save_images), so none is kept.")
    if request.tiled_vae and vae.tiled_by_another(shared.sd_model):
        p.comment(OTHER_TILES)
    if not hires and control.active and request.options.colour_fix > 0:
        p.comment(COLOURS_KEPT)
    if not hires and start == target and no_larger(p, target):
        p.comment("APT: the picture is not to become larger, so it is only drawn anew at its size.")


def _write_infotext(p: Any, job: Job) -> None:
    """What makes this picture; the hires pass may have a checkpoint of its own."""
    window = {f"APT window {family_of(shared.sd_model)}": native_side(shared.sd_model)}
    p.extra_generation_params.update(infotext(job.request, job.own_upscaler) | window | {"APT version": __version__})


def check_ran(p: Any) -> None:
    """A batch has been sampled: where the phases did not run, say so, and claim nothing in its infotext."""
    job = job_of(p)
    if job is None or job.ran or "APT method" not in p.extra_generation_params:
        return
    forget_infotext(p)
    if not (shared.state.interrupted or shared.state.skipped):
        p.comment(TAKEN_OVER)


class _as_hires:
    """A view of a processing object as it will be in its hires pass, for the host's schedule to look at; writes go nowhere."""

    def __init__(self, p: Any):
        self._p = p
        self.is_hr_pass = True
        self.extra_generation_params = dict(p.extra_generation_params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._p, name)


def _announce(p: Any, job: Job, layout: Layout, hires: bool) -> None:
    """Give the phases their share of the host's bar, unless another script has laid the bar out already."""
    steps = layout.plan.steps * len(layout.plan.setups)
    job.first_job = shared.state.job_no
    if not hires:
        if shared.state.job_count in (-1, p.n_iter):
            shared.total_tqdm.updateTotal(steps * p.n_iter)
        return
    if shared.state.job_count == 2 * p.n_iter:
        job.jobs = hires_jobs(layout.plan.evaluations, p.steps)
        shared.state.job_count = p.n_iter * (1 + job.jobs)
        first = 0 if getattr(p, "txt2img_upscale", False) else p.steps
        shared.total_tqdm.updateTotal((first + steps) * p.n_iter)


def install(p: Any) -> None:
    """Let the sampler that the host has just made for this pass run the phases. Called right before it samples."""
    job = job_of(p)
    hires = bool(p.is_hr_pass)
    if job is None:
        return
    sampler = p.sampler
    job.ran, job.small = False, []
    text = isinstance(p, processing.StableDiffusionProcessingTxt2Img)
    if not hires and job.first_job is not None:  # a batch begins; jobs that other scripts ran within the one before have moved the bar
        shared.state.job_no = min(shared.state.job_no, job.first_job + p.iteration * (1 + job.jobs if text else 1))
    if text and not hires:
        if job.words:
            listen(p, job, sampler)
        return
    sampler.__dict__.pop("sample_img2img", None)
    original = sampler.sample_img2img

    def sample_img2img(p: Any, x: Tensor, noise: Tensor, c: Any, uc: Any, steps: int | None = None, image_conditioning: Tensor | None = None) -> Tensor:
        sampler.__dict__.pop("sample_img2img", None)
        tiled = vae.tiled_vae(shared.sd_model, job.request.tiled_vae, job.around)
        with ended_on_failure(p), host().control_ended_on_failure(p), hypertile_aside(shared.sd_model) as hypertile, tiled as follow:
            if hypertile:
                p.comment(HYPERTILE)
            _write_infotext(p, job)
            job.ran = True
            base, job.base = job.base, None
            colours = job.request.options.colour_fix > 0
            how = (x, job.upscaler)
            start = picture_start(p, *how, job.around) if base is None else hires_start(p, base, job.decoded, *how, colours, job.around)
            z, job.small = start.base, start.pictures if colours else []
            layout = lay_out(p, sampler, job.request.options, size_of(z), size_of(x), steps, job.around)
            measuring = Measuring(family_of(shared.sd_model), layout.plan.setups[-1].window, len(z))
            progress = Progress(layout.plan.phases, [[sum(view) for view in phase] for phase in layout.plan.views], job.jobs, measuring)

            def upsample(z: Tensor, size: Size) -> Tensor:
                return vae.upsampler(shared.sd_model, job.upscaler, job.around)(z, size)

            def on_checkpoint() -> None:
                job.follow(shared.sd_model)  # first: what it has in hand lasts until the host has decoded
                follow(shared.sd_model)

            count = len(layout.plan.setups)
            on_finished = partial(save_phase, p, count) if job.request.save_phases else _ignore
            on_lost = partial(rescue, p, count, job.request.save_phases, 0 if hires else 1)
            multiplier = 1.0 if hires else float(p.initial_noise_multiplier or 1.0)
            words = window_words(p, job, layout.facts, z, x, c, image_conditioning) if job.prompts else None
            run = Pass(
                p=p,
                sampler=sampler,
                layout=layout,
                original=original,
                enlarged=start.enlarged,
                upsample=upsample,
                on_finished=on_finished,
                on_lost=on_lost,
                progress=progress,
                noise_multiplier=multiplier,
                words=words,
                on_checkpoint=on_checkpoint,
            )
            return run_phases(run, z, x, (c, uc), steps, image_conditioning)

    sampler.sample_img2img = sample_img2img


def decode_samples(p: Any, samples: Any) -> Any:
    """An img2img job's finished latents -> its pictures, decoded in tiles; what is decoded already or needs no tiles is passed on."""
    job = job_of(p)
    done = isinstance(p, processing.StableDiffusionProcessingTxt2Img) or getattr(samples, "already_decoded", False)
    if job is None or done or not job.request.tiled_vae or shared.opts.sd_vae_decode_method != "Full":
        return samples
    with vae.tiled_vae(shared.sd_model, around=job.around):
        return vae.decode(shared.sd_model, samples)


def _ignore(phase: Phase, latent: Tensor) -> None:
    pass


def _sample_hr_pass(p: Any, original: Callable[..., Any], samples: Tensor | None, decoded_samples: Tensor | None, *args: Any) -> Any:
    """The host's hires pass. Its own enlarging would be thrown away, so it is given the cheap one to do."""
    job = job_of(p)
    if job is None or shared.state.interrupted:
        return original(samples, decoded_samples, *args)
    mode = p.latent_scale_mode
    tiled = vae.tiled_vae(shared.sd_model, job.request.tiled_vae, job.around)
    with ended_on_failure(p), host().control_ended_on_failure(p), tiled as job.follow:
        job.decoded = [] if decoded_samples is None else [vae.to_picture(sample) for sample in decoded_samples]
        if job.decoded and (samples is None or p.hr_checkpoint_info is not None):
            # A picture that was made before, or by another checkpoint: this checkpoint's latents come from its pixels.
            samples = vae.encode(shared.sd_model, job.decoded)
        job.base = samples
        p.latent_scale_mode = {"mode": "bicubic", "antialias": False}
        try:
            return original(samples, None, *args)
        finally:
            p.latent_scale_mode, job.base, job.decoded, job.follow = mode, None, [], stay
