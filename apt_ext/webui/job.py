"""A job of the host's with APT in it: what is attached to its processing object, and what happens when the host comes by.

Nothing outside this job's own objects is changed. Errors are raised from the host's `init`, which lets them through, unlike its script
callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from modules import errors, images, processing, sd_samplers, shared
from PIL import Image
from torch import Tensor

from apt_ext import __version__
from apt_ext.core.phases import Phase, Size
from apt_ext.core.windows import Window
from apt_ext.webui import vae
from apt_ext.webui.denoiser import fused_inside
from apt_ext.webui.errors import refuse
from apt_ext.webui.family import family_of
from apt_ext.webui.labels import draw_labels
from apt_ext.webui.progress import Progress, hires_jobs
from apt_ext.webui.prompts import Crop, Encodings, Seen, gather_from_latent, gathering, prompt_schedules, seen_words
from apt_ext.webui.request import Request, infotext
from apt_ext.webui.resizing import resized, resized_conditioning
from apt_ext.webui.sampling import Layout, Pass, Words, lay_out, run_phases
from apt_ext.webui.settings import native_side
from apt_ext.webui.sizes import FACTOR, hires_sizes, picture_sizes

__all__ = ["Job", "attach", "decode_samples", "detach", "draw_words", "forget_infotext", "install", "job_of", "show_drawn"]

NAME = "apt_job"
HIRES_OFF = "APT is on, but Hires. fix is off, so this picture was made without it. Turn Hires. fix on, or choose 'APT upscale' under Scripts."


@dataclass
class Job:
    """One run of `process_images`.

    Attributes:
        request: what the user asked for.
        base: the first pass's latents, for the hires pass of one batch.
        jobs: how many jobs of the host's bar the phases take.
        seen: where the first pass saw the words of its prompts, for the hires pass of one batch.
        encoded: conditioning of the windows' prompts.
        labels: (batch, picture) -> the last phase's windows and what each keeps of the prompt.
        drawn: finished pictures of these, with their infotexts.
    """

    request: Request
    base: Tensor | None = None
    jobs: int = 1
    seen: Seen | None = None
    encoded: Encodings = field(default_factory=Encodings)
    labels: dict[tuple[int, int], tuple[list[Window], list[str]]] = field(default_factory=dict)
    drawn: list[tuple[Image.Image, str]] = field(default_factory=list)

    @property
    def words(self) -> bool:
        """Whether local windows get prompts of their own."""
        return self.request.options.method == "accdiffusion" and self.request.options.words > 0


def job_of(p: Any) -> Job | None:
    """The job attached to a processing object."""
    return p.__dict__.get(NAME)


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
    p.__dict__.pop(NAME, None)
    for name in ("init", "sample_hr_pass"):
        ours = p.__dict__.get(name)
        if hasattr(ours, "apt_original"):
            p.__dict__.pop(name)
            if ours.apt_own:
                p.__dict__[name] = ours.apt_original


def forget_infotext(p: Any) -> None:
    """Take APT's entries out of the infotext: scripts run copies of one processing object that share them."""
    for key in [key for key in p.extra_generation_params if key.startswith("APT ")]:
        del p.extra_generation_params[key]


def _wrap(p: Any, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(p, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(p, original, *args, **kwargs)

    wrapped.apt_original = original  # type: ignore[attr-defined]
    wrapped.apt_own = name in p.__dict__  # type: ignore[attr-defined]
    p.__dict__[name] = wrapped


def _init(p: Any, original: Callable[..., None], *args: Any, request: Request | Exception) -> None:
    """The host's `init`; then everything that can be refused is, before any sampling."""
    if isinstance(request, Exception):
        refuse(p, request)
    try:
        _check(p, request)
    except ValueError as error:
        refuse(p, error)
    with vae.tiled_vae(shared.sd_model, request.tiled_vae):
        original(*args)
    if not isinstance(p, processing.StableDiffusionProcessingTxt2Img) or p.enable_hr:
        try:
            _prepare(p, request)
        except ValueError as error:
            refuse(p, error)


def _check(p: Any, request: Request) -> None:
    """What can be told before the host's own `init`."""
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img) and not p.enable_hr:
        if p.is_api:
            raise ValueError("Hires. fix is off; set enable_hr to true, or use script_name 'APT upscale'")
        p.comment(HIRES_OFF)
        return
    family_of(shared.sd_model)
    if p.tiling:
        raise ValueError("pictures that tile seamlessly cannot be made window by window; turn Tiling off")
    if Job(request).words and shared.opts.use_old_emphasis_implementation:
        raise ValueError("words per window cannot be told apart with the old emphasis implementation; turn that setting off, or set words per window to 0")
    if request.options.gamma == "auto" and p.batch_size > 1:
        raise ValueError(f"schedule strength 'auto' is measured on one picture at a time, not on a batch of {p.batch_size}; use batch count, or give a number")


def _prepare(p: Any, request: Request) -> None:
    """Lay the job out once the host knows the sizes; tell the bar and the infotext."""
    hires = isinstance(p, processing.StableDiffusionProcessingTxt2Img)
    start, target = _hires_sizes(p) if hires else _picture_sizes(p)
    name = (p.hr_sampler_name or p.sampler_name) if hires else p.sampler_name
    sampler = sd_samplers.create_sampler(name, shared.sd_model)
    p_pass = _as_hires(p) if hires else p
    layout = lay_out(p_pass, sampler, request.options, start, target, (p.hr_second_pass_steps or p.steps) if hires else None)
    job = job_of(p)
    assert job is not None
    _announce(p, job, layout, hires)
    p.extra_generation_params.update(infotext(request) | _window_infotext() | {"APT version": __version__})


def _window_infotext() -> dict[str, int]:
    return {f"APT window {family_of(shared.sd_model)}": native_side(shared.sd_model)}


class _as_hires:
    """A view of a processing object as it will be in its hires pass, for the host's schedule to look at; writes go nowhere."""

    def __init__(self, p: Any):
        self._p = p
        self.is_hr_pass = True
        self.extra_generation_params = dict(p.extra_generation_params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._p, name)


def _hires_sizes(p: Any) -> tuple[Size, Size]:
    return hires_sizes((p.width, p.height), (p.hr_upscale_to_x, p.hr_upscale_to_y), (p.truncate_x, p.truncate_y))


def _picture_sizes(p: Any) -> tuple[Size, Size]:
    given = (p.paste_to[2], p.paste_to[3]) if p.paste_to else p.init_images[0].size
    asked = (p.init_latent.shape[-1] * FACTOR, p.init_latent.shape[-2] * FACTOR)
    return picture_sizes(given, asked, 2 if p.paste_to else p.resize_mode, native_side(shared.sd_model))


def _announce(p: Any, job: Job, layout: Layout, hires: bool) -> None:
    """Give the phases their share of the host's bar, unless another script has laid the bar out already."""
    views = sum(sum(view) for phase in layout.views for view in phase)
    steps = len(layout.calls) * len(layout.phases)
    if not hires:
        if shared.state.job_count in (-1, p.n_iter):
            shared.total_tqdm.updateTotal(steps * p.n_iter)
        return
    if shared.state.job_count == 2 * p.n_iter:
        job.jobs = hires_jobs(views, p.steps)
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
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img) and not hires:
        if job.words:
            _listen(p, job, sampler)
        return
    sampler.__dict__.pop("sample_img2img", None)
    original = sampler.sample_img2img

    def sample_img2img(p: Any, x: Tensor, noise: Tensor, c: Any, uc: Any, steps: int | None = None, image_conditioning: Tensor | None = None) -> Tensor:
        sampler.__dict__.pop("sample_img2img", None)
        with vae.tiled_vae(shared.sd_model, job.request.tiled_vae):
            p.extra_generation_params.update(_window_infotext())  # the hires pass may have a checkpoint of its own
            z = _hires_base(p, job, x) if hires else _picture_base(p, x)
            layout = lay_out(p, sampler, job.request.options, (z.shape[-2], z.shape[-1]), (x.shape[-2], x.shape[-1]), steps)
            progress = Progress(layout.phases, [[sum(view) for view in phase] for phase in layout.views], job.jobs)
            upsample = vae.upsampler(shared.sd_model, _upscaler(p, hires))
            count = len(layout.phases)
            on_finished = partial(_save_phase, p, count) if job.request.save_phases else _ignore
            on_lost = partial(_rescue, p, count, job.request.save_phases, 0 if hires else 1)
            multiplier = 1.0 if hires else float(p.initial_noise_multiplier or 1.0)
            words = _words(p, job, layout, z, x, c, image_conditioning) if job.words else None
            run = Pass(p, sampler, layout, original, upsample, on_finished, on_lost, progress, multiplier, words)
            return run_phases(run, z, x, (c, uc), steps, image_conditioning)

    sampler.sample_img2img = sample_img2img


def _listen(p: Any, job: Job, sampler: Any) -> None:
    """Let the first pass, about to sample, gather where it sees the words of its prompts."""
    sampler.__dict__.pop("sample", None)
    original = sampler.sample

    def sample(p: Any, x: Tensor, conditioning: Any, *args: Any, **kwargs: Any) -> Any:
        sampler.__dict__.pop("sample", None)
        schedules = prompt_schedules(p, conditioning)
        if schedules is None:  # `_words` says so
            return original(p, x, conditioning, *args, **kwargs)
        with gathering(sampler.model_wrap_cfg, schedules, (x.shape[-2], x.shape[-1]), fused_inside) as maps:
            samples = original(p, x, conditioning, *args, **kwargs)
        job.seen = seen_words(maps)
        return samples

    job.seen = None
    sampler.sample = sample


def _words(p: Any, job: Job, layout: Layout, z: Tensor, x: Tensor, cond: Any, image_conditioning: Tensor | None) -> Words | None:
    """The prompts of the windows; where there was no first pass to see the words in, one short pass over the base latent looks for them."""
    schedules = prompt_schedules(p, cond)
    if schedules is None:
        p.comment("APT: another extension has made the prompt's conditioning, so its words cannot be told apart and every window keeps the whole prompt.")
        return None
    seen, job.seen, size = job.seen, None, (z.shape[-2], z.shape[-1])
    crop = Crop(0, 0, size, size)
    if seen is None:
        dummy = z.new_zeros(len(z), 5, 1, 1) if image_conditioning is None else image_conditioning
        facts = layout.facts
        maps = gather_from_latent(z, cond, schedules, partial(resized_conditioning, dummy), facts.window, facts.multiple)
        seen = seen_words(maps)
    elif getattr(p, "truncate_x", 0) or getattr(p, "truncate_y", 0):
        whole = (p.height // FACTOR, p.width // FACTOR)
        top, left = _hires_cut(p, whole)
        crop = Crop(top // 2, left // 2, size, whole)
    if not seen.words:
        p.comment("APT: the model's cross-attention could not be seen, so every window keeps the whole prompt.")
        return None

    def on_windows(windows: list[Window], texts: list[list[str]]) -> None:
        for picture, of_picture in enumerate(texts):
            job.labels[p.iteration, picture] = (windows, of_picture)

    return Words(seen, cond, schedules, crop, job.encoded, on_windows)


def draw_words(p: Any, picture: Image.Image) -> None:
    """A picture of the job is finished: draw its windows and their words over a copy, if the user asked for it."""
    job = job_of(p)
    labels = job.labels.get((p.iteration, p.batch_index)) if job is not None else None
    if job is None or labels is None or not job.request.draw_words:
        return
    drawn = draw_labels(picture, *labels)
    info = _infotext_of(p, p.batch_index)
    if p.save_samples():
        _save_beside(p, drawn, p.batch_index, info, "-apt-words")
    job.drawn.append((drawn, info))


def show_drawn(p: Any, processed: Any) -> None:
    """Put the pictures of windows and words behind the job's own."""
    job = job_of(p)
    for drawn, info in job.drawn if job is not None else ():
        processed.images.append(drawn)
        processed.infotexts.append(info)


def decode_samples(p: Any, samples: Any) -> Any:
    """An img2img job's finished latents -> its pictures, decoded in tiles; what is decoded already or needs no tiles is passed on."""
    job = job_of(p)
    done = isinstance(p, processing.StableDiffusionProcessingTxt2Img) or getattr(samples, "already_decoded", False)
    if job is None or done or not job.request.tiled_vae or shared.opts.sd_vae_decode_method != "Full":
        return samples
    with vae.tiled_vae(shared.sd_model):
        return vae.decode(shared.sd_model, samples)


def _ignore(phase: Phase, latent: Tensor) -> None:
    pass


def _upscaler(p: Any, hires: bool) -> str | None:
    """The pixel upscaler that the user chose in the host; None enlarges latents."""
    if hires:
        return None if p.hr_upscaler is None or p.hr_upscaler in shared.latent_upscale_modes else str(p.hr_upscaler)
    chosen = shared.opts.upscaler_for_img2img
    return None if chosen in (None, "", "None") else str(chosen)


def _hires_cut(p: Any, have: Size) -> tuple[int, int]:
    """Latent pixels (rows, columns) to cut off the first pass, of size `have`, for the target's aspect."""
    whole = (p.hr_upscale_to_y // FACTOR, p.hr_upscale_to_x // FACTOR)
    return round(p.truncate_y * have[0] / whole[0]), round(p.truncate_x * have[1] / whole[1])


def _hires_base(p: Any, job: Job, x: Tensor) -> Tensor:
    """The first pass's own latents, cut to the target's aspect as the host cuts the enlarged ones."""
    assert job.base is not None
    z, job.base = job.base, None
    top, left = _hires_cut(p, (z.shape[-2], z.shape[-1]))
    return z[:, :, top // 2 : z.shape[-2] - (top + 1) // 2, left // 2 : z.shape[-1] - (left + 1) // 2].to(x)


def _picture_base(p: Any, x: Tensor) -> Tensor:
    """The given pictures' latents at their own size."""
    start, target = _picture_sizes(p)
    if start == target:
        return x
    if p.nmask is not None and p.inpainting_fill != 1:
        # The host has filled the mask in the enlarged latent; only there is the filling to be had.
        return resized(x, start, "bicubic")
    latents = []
    for picture in p.init_images:
        flat = images.flatten(picture, shared.opts.img2img_background_color)
        if p.paste_to:
            left, top, width, height = p.paste_to
            flat = flat.crop((left, top, left + width, top + height))
        mode = 2 if p.paste_to else 0 if p.resize_mode == 3 else p.resize_mode
        latents.append(vae.encode_picture(shared.sd_model, flat, start, mode))
    z = torch.cat(latents).to(x)
    return z.expand(x.shape[0], -1, -1, -1).clone() if z.shape[0] == 1 else z


def _rescue(p: Any, count: int, saved: bool, least: int, number: int, latent: Tensor) -> None:
    """A phase has failed: save what the phases before it have made, if that is not saved already and is not just the user's own picture."""
    if number < least or (saved and number > 0):
        return
    try:
        _save_pictures(p, number, count, latent)
    except Exception:  # the error that brought us here is the one to show
        errors.report("APT: the picture of the phases before could not be saved", exc_info=True)


def _save_phase(p: Any, count: int, phase: Phase, latent: Tensor) -> None:
    _save_pictures(p, phase.number, count, latent)


def _infotext_of(p: Any, index: int) -> str:
    """Of one picture of the batch."""
    return str(processing.create_infotext(p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts))


def _save_beside(p: Any, picture: Image.Image, index: int, info: str, suffix: str) -> None:
    """Save a picture beside the result of the same number."""
    images.save_image(picture, p.outpath_samples, "", p.seeds[index], p.prompts[index], shared.opts.samples_format, info=info, p=p, suffix=suffix)


def _save_pictures(p: Any, number: int, count: int, latent: Tensor) -> None:
    """Save the pictures of a finished phase beside the results, with their infotext; phase 0 is the first pass."""
    if not p.save_samples():
        return
    p.extra_generation_params["APT phase"] = f"{number} of {count}"
    try:
        for index, picture in enumerate(vae.pictures_of(shared.sd_model, latent)):
            _save_beside(p, picture, index, _infotext_of(p, index), f"-apt-phase{number}")
    finally:
        p.extra_generation_params.pop("APT phase", None)


def _sample_hr_pass(p: Any, original: Callable[..., Any], samples: Tensor | None, decoded_samples: Tensor | None, *args: Any) -> Any:
    """The host's hires pass. Its own enlarging would be thrown away, so it is given the cheap one to do."""
    job = job_of(p)
    if job is None or shared.state.interrupted:
        return original(samples, decoded_samples, *args)
    mode = p.latent_scale_mode
    with vae.tiled_vae(shared.sd_model, job.request.tiled_vae):
        if decoded_samples is not None and (samples is None or p.hr_checkpoint_info is not None):
            # A picture that was made before, or by another checkpoint: this checkpoint's latents come from its pixels.
            samples = vae.encode(shared.sd_model, [vae.to_picture(sample) for sample in decoded_samples])
        job.base = samples
        p.latent_scale_mode = {"mode": "bicubic", "antialias": False}
        try:
            return original(samples, None, *args)
        finally:
            p.latent_scale_mode, job.base = mode, None
