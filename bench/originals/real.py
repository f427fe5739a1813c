"""How far each pipeline's pictures are from real ones, by the kernel distance of the quality benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apt_ext.demo.pictures import READ, load_picture, to_tensor
from bench.quality.kernel import features, kernel_parts, whitening

__all__ = ["distances", "real_pictures"]

SIDE = 128  # pixels of what the features see, of a whole picture and of a patch alike
PATCHES = 8
SPARE = 8  # real pictures that only tell how features vary


def real_pictures(folder: str, count: int, side: int) -> list[Image.Image]:
    """The middles of a folder's pictures, brought to `side` pixels square.

    Args:
        count: how many pictures they are to be compared with.

    Raises:
        ValueError: where they are too few, or the folder is none.
    """
    files = sorted(path for path in Path(folder).expanduser().glob("*") if path.suffix.lower() in READ)
    if len(files) < count + SPARE:
        raise ValueError(
            f"folder {folder!r} has {len(files)} pictures and {count + SPARE} are needed, as many as are made and {SPARE} more; add some, or make fewer"
        )
    if count < 2:
        raise ValueError(f"{count} made picture has no distance from others; make at least two, with --count or a file of prompts")
    made = []
    for file in files:
        picture = load_picture(file).rgb
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        made.append(picture.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge)))
    return made


def _whole(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([features(to_tensor(one.resize((SIDE, SIDE), Image.Resampling.LANCZOS))) for one in pictures])


def _patches(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, PATCHES, F), from the same places of each picture."""
    rng, side = np.random.default_rng(1), min(pictures[0].size)
    edge = min(SIDE, side)
    places = rng.integers(0, side - edge + 1, (PATCHES, 2)).tolist()
    return torch.stack([torch.cat([features(to_tensor(one.crop((x, y, x + edge, y + edge)))) for x, y in places]) for one in pictures])


def distances(made: Mapping[str, Sequence[Image.Image]], real: Sequence[Image.Image]) -> dict[str, dict[str, Any]]:
    """Name of a set -> its distance from the real pictures, "whole" (shrunk) and by "patches" of the full size; the smaller the better, 0 is none."""
    found: dict[str, dict[str, Any]] = {name: {} for name in made}
    count = len(next(iter(made.values())))
    for measure, seen in (("whole", _whole), ("patches", _patches)):
        truth = seen(real)
        whiten = whitening(truth[count:].flatten(0, 1))
        for name, pictures in made.items():
            found[name][measure] = float(kernel_parts(seen(pictures), truth[:count], whiten).mean())
    return found
