"""What a picture's infotext claims of APT: its settings, where it made the picture, and nothing where it did not."""

from __future__ import annotations

from typing import Any

from modules import shared

from apt_ext import __version__
from apt_ext.webui.hosts.checkpoint import family_of, native_side
from apt_ext.webui.page.request import infotext
from apt_ext.webui.state import Job, job_of

__all__ = ["TAKEN_OVER", "check_ran", "forget_infotext", "write_infotext"]

TAKEN_OVER = "APT did not run, for another extension has taken the sampling over (Tiled Diffusion, perhaps). Turn one of the two off."


def forget_infotext(p: Any) -> None:
    """Take APT's entries out of the infotext: scripts run copies of one processing object that share them. The others keep what they have."""
    p.extra_generation_params = {key: value for key, value in p.extra_generation_params.items() if not key.startswith("APT ")}


def write_infotext(p: Any, job: Job) -> None:
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
