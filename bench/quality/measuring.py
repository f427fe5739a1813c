"""Measuring: a task's large pictures, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from apt_ext.demo.autoencoder import FACTOR
from bench.quality import measures
from bench.quality.kernel import features
from bench.quality.pictures import PIXELS, true_pictures
from bench.quality.store import Results
from bench.quality.tasks import Task, last_windows

__all__ = ["VERSION", "measure"]

VERSION = 2
"""Raise it with any change to a measure: pictures are then measured anew, but not made anew."""


@torch.no_grad()
def measure(task: Task, numbers: Sequence[int], pictures: NDArray[np.uint8], work: Path) -> Results:
    """Measure pictures (B, h, w, 3) against their truth and their input; "windows" are the kernel distance's features."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    true = true_pictures(task.kind, numbers, x.shape[-1], work)
    power = measures.log_spectrum(x) - measures.log_spectrum(true)  # column k is k + 1 cycles per picture
    limit = PIXELS // 2 - 1
    windows = features(measures.cut(x, PIXELS).flatten(0, 1))
    values = {
        "psnr": measures.psnr(x, true),
        "ssim": measures.ssim(x, true),
        "edges": measures.structure(x, true, float(task.scale)),
        "below": power[:, :limit].mean(1),
        "above": power[:, limit:].mean(1),
        "agreement": measures.agreement(x, true_pictures(task.kind, numbers, PIXELS, work)),
        "seams": torch.cat([measures.seams(one[None], last_windows(task, number), FACTOR) for one, number in zip(x, numbers, strict=True)]),
        "windows": windows.reshape(len(x), -1, windows.shape[1]),
    }
    return {name: value.float().numpy() for name, value in values.items()}
