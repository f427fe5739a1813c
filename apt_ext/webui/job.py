"""A job of the host's with APT in it: what is attached to its processing object, and what happens when the host comes by.

Nothing outside this job's own objects is changed. Errors are raised from the host's `init`, which lets them through, unlike its script
callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules import processing, shared

from apt_ext.core.borders import NOWHERE
from apt_ext.webui.claims import write_infotext
from apt_ext.webui.errors import refuse
from apt_ext.webui.hosts.attention import check_hooks
from apt_ext.webui.hosts.borders import check_seamless, seamless_axes
from apt_ext.webui.hosts.checkpoint import family_of
from apt_ext.webui.hosts.detect import check_host, host
from apt_ext.webui.hosts.extensions import check_extensions, ended_on_failure
from apt_ext.webui.latents import vae
from apt_ext.webui.latents.sources import hires_sizes_of, no_larger, picture_sizes_of
from apt_ext.webui.latents.upscalers import LATENT, NONE, hires_upscaler, host_name, resolved
from apt_ext.webui.page.request import Request
from apt_ext.webui.run.layout import Layout, lay_out, sampler_named
from apt_ext.webui.run.progress import hires_jobs
from apt_ext.webui.sampling import sample_hr_pass
from apt_ext.webui.state import Job, job_of, keep_job, without_job

__all__ = ["attach", "detach"]

HIRES_OFF = "APT is on, but Hires. fix is off, so this picture was made without it. Turn Hires. fix on, or choose 'APT upscale' under Scripts."
OTHER_TILES = "APT: another extension decodes and encodes in tiles of its own (Tiled VAE of Tiled Diffusion, perhaps), so APT's Tiled VAE stands back."
COLOURS_KEPT = "APT: the colour fix takes brightness and colours from the given picture, so a ControlNet unit cannot change them; for that, set it to 0."


def attach(p: Any, request: Request | Exception) -> None:
    """Put a job onto a processing object, before its `init`; an error instead of a request lets the job fail.

    Attaching again, as scripts do that run one object several times, replaces the job before. It adds methods to the object, which cannot be sent
    anywhere, so it comes after `before_process`, where extensions hand the object to other machines.
    """
    detach(p)
    is_txt2img = isinstance(p, processing.StableDiffusionProcessingTxt2Img)
    if isinstance(request, Request):
        keep_job(p, Job(request))
        if is_txt2img and p.enable_hr:
            _wrap(p, "sample_hr_pass", sample_hr_pass)
    _wrap(p, "init", partial(_init, request=request))


def detach(p: Any) -> None:
    """Take everything off a processing object again."""
    job = without_job(p)
    if job is not None and job.named:
        p.hr_upscaler = None
    for name in ("init", "sample_hr_pass"):
        ours = p.__dict__.get(name)
        if hasattr(ours, "apt_original"):
            p.__dict__.pop(name)
            if ours.apt_own:
                p.__dict__[name] = ours.apt_original


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
    check_extensions(p)
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
    p_pass = _as_hires(p) if hires else p
    sampler = sampler_named(name, p_pass)
    layout = lay_out(p_pass, sampler, request.options, start, target, (p.hr_second_pass_steps or p.steps) if hires else None, job.around)
    _announce(p, job, layout, hires)
    write_infotext(p, job)
    if request.save_phases and not p.save_samples():
        p.comment("APT: phases are saved where pictures are, and saving pictures is off (in the API: save_images), so none is kept.")
    if request.tiled_vae and vae.tiled_by_another(shared.sd_model):
        p.comment(OTHER_TILES)
    if not hires and control.active and request.options.colour_fix > 0:
        p.comment(COLOURS_KEPT)
    if not hires and start == target and no_larger(p, target):
        p.comment("APT: the picture is not to become larger, so it is only drawn anew at its size.")


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
