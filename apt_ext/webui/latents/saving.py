"""Pictures that a job saves beside its results."""

from __future__ import annotations

from typing import Any

from modules import errors, images, processing, shared
from PIL import Image
from torch import Tensor

from apt_ext.core.phases import Phase
from apt_ext.webui.latents import vae

__all__ = ["infotext_of", "rescue", "save_beside", "save_phase"]


def rescue(p: Any, count: int, saved: bool, least: int, number: int, latent: Tensor) -> None:
    """A phase has failed: save what the phases before it have made, if that is not saved already and is not just the user's own picture."""
    if number < least or (saved and number > 0):
        return
    try:
        _save_pictures(p, number, count, latent)
    except Exception:  # the error that brought us here is the one to show
        errors.report("APT: the picture of the phases before could not be saved", exc_info=True)


def save_phase(p: Any, count: int, phase: Phase, latent: Tensor) -> None:
    """A phase is finished and the user wants its picture."""
    _save_pictures(p, phase.number, count, latent)


def infotext_of(p: Any, index: int) -> str:
    """Of one picture of the batch."""
    return str(processing.create_infotext(p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts))


def save_beside(p: Any, picture: Image.Image, index: int, info: str, suffix: str) -> None:
    """Save a picture beside the result of the same number."""
    images.save_image(picture, p.outpath_samples, "", p.seeds[index], p.prompts[index], shared.opts.samples_format, info=info, p=p, suffix=suffix)


def _save_pictures(p: Any, number: int, count: int, latent: Tensor) -> None:
    """Save the pictures of a finished phase beside the results, with their infotext; phase 0 is the first pass."""
    if not p.save_samples():
        return
    p.extra_generation_params["APT phase"] = f"{number} of {count}"
    try:
        for index, picture in enumerate(vae.pictures_of(shared.sd_model, latent)):
            save_beside(p, picture, index, infotext_of(p, index), f"-apt-phase{number}")
    finally:
        p.extra_generation_params.pop("APT phase", None)
