"""What the embedded model is trained on: random views of scenes and of halves of photographs, at five zooms."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from apt_ext.demo.photos import load_more_photos, load_photos, training_half
from apt_ext.demo.world import STYLES, make_scene, render

__all__ = [
    "FIRST_SEED",
    "STYLE_NAMES",
    "VIEW",
    "ZOOMS",
    "Pool",
    "draw",
    "draw_large",
    "make_pool",
    "photo_pyramids",
    "pieces",
    "recolour",
    "soften",
    "training_photos",
]

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


def draw_large(pool: Pool, n: int, side: int, photo_share: float, patched: float, rng: np.random.Generator) -> Tensor:
    """n random views of `side` pixels, a multiple of 64: (n, 3, side, side) RGB in -1..1.

    Args:
        patched: share of them that are patchworks of native views, in which nothing is like its neighbours.

    Raises:
        ValueError: where the pool has no picture as large as that.
    """
    cells = side // VIEW
    levels = [[p for level in zooms for p in level if min(p.shape[:2]) >= side] for zooms in pool]
    scenes = [style for style, pictures in enumerate(levels[: len(STYLES)]) if pictures]
    if not scenes:
        raise ValueError(f"no scene is rendered at {side} pixels; the largest zoom gives {round(CANVAS_EXTENT * VIEW * ZOOMS[-1])}")
    views = []
    for _ in range(n):
        if rng.random() < patched:
            x, _ = draw(pool, cells * cells, photo_share, rng)
            views.append(x.reshape(cells, cells, 3, VIEW, VIEW).permute(2, 0, 3, 1, 4).reshape(3, side, side))
            continue
        photo = bool(levels[-1]) and rng.random() < photo_share
        pictures = levels[-1 if photo else scenes[int(rng.integers(len(scenes)))]]
        picture = pictures[int(rng.integers(len(pictures)))]
        y, x0 = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        view = np.rot90(picture[y : y + side, x0 : x0 + side], 0 if photo else int(rng.integers(4)))
        view = view[:, ::-1] if rng.random() < 0.5 else view
        views.append(torch.from_numpy(view.copy()).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(views)


def pieces(x: Tensor, side: int) -> Tensor:
    """(n, c, h, w) -> (n * h / side * w / side, c, side, side), row by row, picture by picture."""
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // side, side, w // side, side)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, side, side)


def soften(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """About `share` of the views (n, 3, h, w) as enlargements by 1.5 to 4 show them, which is what a phase of an enlargement begins with."""
    x = x.clone()
    for k in range(len(x)):
        if rng.random() < share:
            small = F.interpolate(x[k : k + 1], scale_factor=1 / float(rng.uniform(1.5, 4)), mode="bicubic", antialias=True)
            x[k] = F.interpolate(small, size=x.shape[-2:], mode="bicubic")[0].clamp(-1, 1)
    return x


def recolour(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The first `share` of the views (n, 3, h, w) in -1..1 with their channels swapped and dimmed, for colours that few scenes have."""
    x = x.clone()
    for k in range(round(share * len(x))):
        gain = torch.from_numpy(rng.uniform(0.2, 1.0) * rng.uniform(0.6, 1.0, 3)).to(x.dtype)
        x[k] = (x[k, rng.permutation(3)] + 1) * gain[:, None, None] - 1
    return x
