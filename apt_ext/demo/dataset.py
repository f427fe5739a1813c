"""What the embedded model is trained on: random views of scenes and of halves of photographs, at five zooms."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from apt_ext.demo.photos import load_more_photos, load_photos, training_half
from apt_ext.demo.world import STYLES, make_scene, render

__all__ = ["FIRST_SEED", "STYLE_NAMES", "VIEW", "ZOOMS", "Pool", "draw", "make_pool", "photo_pyramids", "recolour", "training_photos"]

VIEW = 64  # pixels of a native picture
ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0)
CANVAS_EXTENT = 1.5
CLOSE = 384  # pixels of a photograph in the smaller view
STYLE_NAMES = (*STYLES, "photo")
FIRST_SEED = 1_000_000  # training's scenes have seeds from here on, everything else has smaller ones

Picture = NDArray[np.uint8]
Pool = list[list[list[Picture]]]  # [style][zoom][picture] -> (rows, columns, 3)


def _scene_pyramid(job: tuple[str, int, int]) -> list[Picture]:
    """A scene at the first zooms, each rendered for itself."""
    style, seed, zooms = job
    scene = make_scene(style, seed, extent=CANVAS_EXTENT)
    return [render(scene, round(CANVAS_EXTENT * VIEW * zoom)) for zoom in ZOOMS[:zooms]]


def photo_pyramids(photo: Picture) -> list[list[Picture]]:
    """A photograph at every zoom, once or twice: a view is most of its shorter side; of a large one also no more than 384 pixels of it.

    Where a zoom of 4 would have to invent pixels a view is more of the shorter side, up to the whole.
    """
    image, shorter = Image.fromarray(photo), min(photo.shape[:2])
    views = [min(shorter, max(shorter / 1.25, VIEW * ZOOMS[-1]))] + [CLOSE] * (shorter > 1.25 * CLOSE)

    def at(view: float, zoom: float) -> Picture:
        width, height = (max(VIEW, round(side * VIEW * zoom / view)) for side in image.size)
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))

    return [[at(view, zoom) for zoom in ZOOMS] for view in views]


def make_pool(seed: int, scenes: int, whole_scenes: int, photos: Sequence[Picture], workers: int) -> Pool:
    """Render the training's scenes and shrink its photographs.

    Args:
        scenes: of each style, at every zoom. `whole_scenes`: more of them, at zoom 1 alone, where a view shows most.
    """
    jobs = [(style, seed * FIRST_SEED + i, len(ZOOMS) if i < scenes else 1) for i in range(scenes + whole_scenes) for style in STYLES]
    pool: Pool = [[[] for _ in ZOOMS] for _ in STYLE_NAMES]
    with ProcessPoolExecutor(workers) as processes:
        done = processes.map(_scene_pyramid, jobs, chunksize=8)
        for (style, _, _), pictures in zip(jobs, tqdm(done, total=len(jobs), desc="scenes", mininterval=10), strict=True):
            for level, picture in zip(pool[STYLE_NAMES.index(style)], pictures, strict=False):
                level.append(picture)
    for pyramid in (pyramid for photo in photos for pyramid in photo_pyramids(photo)):
        for level, picture in zip(pool[-1], pyramid, strict=True):
            level.append(picture)
    return pool


def training_photos(folder: Path | None) -> list[Picture]:
    """The halves of the Python packages' photographs and, with a folder that holds them, Debian's."""
    return [training_half(photo) for photo in load_photos()] + (load_more_photos(folder) if folder else [])


def draw(pool: Pool, n: int, photo_share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """n random views: (n, 3, 64, 64) RGB in -1..1, (n,) style indices. Half of them show a whole view, half a zoom into one."""
    views, styles = np.empty((n, VIEW, VIEW, 3), np.uint8), np.empty(n, np.int64)
    for k in range(n):
        photo = rng.random() < photo_share
        style = len(STYLES) if photo else int(rng.integers(len(STYLES)))
        level = pool[style][0 if rng.random() < 0.5 else int(rng.integers(1, len(ZOOMS)))]
        picture = level[int(rng.integers(len(level)))]
        y, x = (int(rng.integers(side - VIEW + 1)) for side in picture.shape[:2])
        view = picture[y : y + VIEW, x : x + VIEW]
        if rng.random() < 0.5:
            view = view[:, ::-1]
        views[k] = view if photo else np.rot90(view, int(rng.integers(4)))
        styles[k] = style
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(styles)


def recolour(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The first `share` of the views (n, 3, h, w) in -1..1 with their channels swapped and dimmed, for colours that few scenes have."""
    x = x.clone()
    for k in range(round(share * len(x))):
        gain = torch.from_numpy(rng.uniform(0.2, 1.0) * rng.uniform(0.6, 1.0, 3)).to(x.dtype)
        x[k] = (x[k, rng.permutation(3)] + 1) * gain[:, None, None] - 1
    return x
