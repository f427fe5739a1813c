"""The host's passes with APT in them: its sampler runs the phases, its hires pass begins with them, and what they made is decoded in tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules import processing, shared
from torch import Tensor

from apt_ext.core.phases import Phase
from apt_ext.core.types import Size, size_of
from apt_ext.webui.claims import write_infotext
from apt_ext.webui.hosts.checkpoint import family_of
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.hosts.extensions import HYPERTILE, ended_on_failure, hypertile_aside
from apt_ext.webui.latents import vae
from apt_ext.webui.latents.saving import rescue, save_phase
from apt_ext.webui.latents.sources import Start, hires_start, picture_start
from apt_ext.webui.run.layout import lay_out
from apt_ext.webui.run.pace import Measuring
from apt_ext.webui.run.phases import Pass, run_phases
from apt_ext.webui.run.progress import Progress
from apt_ext.webui.state import Job, job_of, stay
from apt_ext.webui.words.passes import listen, window_words

__all__ = ["decode_samples", "install", "sample_hr_pass"]


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
            write_infotext(p, job)
            job.ran = True
            start = _start(p, job, x)
            z, job.small = start.base, start.pictures if job.request.options.colour_fix > 0 else []
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


def _start(p: Any, job: Job, x: Tensor) -> Start:
    """What the phases begin with: what the first pass made, or the given picture. `x`: the latents that the host would have started from."""
    base, job.base = job.base, None
    if base is None:
        return picture_start(p, x, job.upscaler, job.around)
    return hires_start(p, base, job.decoded, x, job.upscaler, job.request.options.colour_fix > 0, job.around)


def decode_samples(p: Any, samples: Any) -> Any:
    """An img2img job's finished latents -> its pictures, decoded in tiles; what is decoded already or needs no tiles is passed on."""
    job = job_of(p)
    done = isinstance(p, processing.StableDiffusionProcessingTxt2Img) or getattr(samples, "already_decoded", False)
    if job is None or done or not job.request.tiled_vae or shared.opts.sd_vae_decode_method != "Full":
        return samples
    with vae.tiled_vae(shared.sd_model, around=job.around):
        return vae.decode(shared.sd_model, samples)


def sample_hr_pass(p: Any, original: Callable[..., Any], samples: Tensor | None, decoded_samples: Tensor | None, *args: Any) -> Any:
    """The host's hires pass. Its own enlarging would be thrown away, so it is given the cheap one to do."""
    job = job_of(p)
    if job is None or shared.state.interrupted:
        return original(samples, decoded_samples, *args)
    mode = p.latent_scale_mode
    tiled = vae.tiled_vae(shared.sd_model, job.request.tiled_vae, job.around)
    with ended_on_failure(p), host().control_ended_on_failure(p), tiled as job.follow:
        job.decoded = [] if decoded_samples is None else [vae.to_picture(sample) for sample in host().first_pictures(decoded_samples)]
        if job.decoded and (samples is None or p.hr_checkpoint_info is not None):
            # A picture that was made before, or by another checkpoint: this checkpoint's latents come from its pixels.
            samples = vae.encode(shared.sd_model, job.decoded)
        job.base = samples
        p.latent_scale_mode = {"mode": "bicubic", "antialias": False}
        try:
            return original(samples, None, *args)
        finally:
            p.latent_scale_mode, job.base, job.decoded, job.follow = mode, None, [], stay


def _ignore(phase: Phase, latent: Tensor) -> None:
    pass
