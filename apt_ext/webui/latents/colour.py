"""The colour fix of a job's finished pictures: before the host saves them, and before its own colour correction and overlay."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from apt_ext.core.borders import interpolate
from apt_ext.core.colour import fix_colour
from apt_ext.core.types import Around, size_of
from apt_ext.webui.state import job_of

__all__ = ["fix_colours"]


def _tensor(picture: Image.Image) -> Tensor:
    """A picture -> (1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255)[None]


def _fixed(picture: Tensor, small: Tensor, width: float, kept: Tensor | None, around: Around) -> Tensor:
    """(1, 3, H, W) with the coarse colours of the smaller one; `kept`: (1, 1, h, w), 1 where the picture was not to change, None for everywhere."""
    if kept is None:
        return fix_colour(picture, small, width, around)
    share = F.interpolate(kept.to(picture), size=picture.shape[-2:], mode="bilinear")
    # What was to change counts as right, so that it neither gets other colours nor gives its own to what is around it.
    right = interpolate(small, size_of(picture), around)
    seen = picture * share + right * (1 - share)
    return picture + share * (fix_colour(seen, small, width, around) - seen)


def fix_colours(p: Any, pictures: Tensor) -> None:
    """Fix the finished pictures of a batch in place.

    Args:
        pictures: (B, 3, H, W) in 0..1, of a job whose phases have run. Those that are smaller than what they started from are left alone.
    """
    job = job_of(p)
    width = job.request.options.colour_fix if job is not None else 0.0
    if job is None or not job.ran or not width:
        return
    nmask = getattr(p, "nmask", None) if getattr(p, "mask", None) is not None else None
    # (C, h, w), all channels alike; on Neo (1, C, h, w)
    kept = None if nmask is None else 1 - nmask.reshape(-1, 1, *nmask.shape[-2:])[:1].detach().float().to(pictures.device)
    for picture, small in zip(pictures, job.small, strict=False):
        if picture.shape[-1] >= small.width and picture.shape[-2] >= small.height:
            picture.copy_(_fixed(picture[None], _tensor(small).to(picture), width, kept, job.around)[0].clamp(0, 1))
