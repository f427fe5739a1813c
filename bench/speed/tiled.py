"""Decoding in tiles against decoding at once, where that still fits: its time, how far apart the pictures are, and that memory stays flat."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.model import LeavesModel, load_model
from apt_ext.demo.world import STYLES, make_scene, render
from bench.machine import median_ratio, seconds
from bench.speed.memory import MIB, allocated_peak

__all__ = ["tiled"]

EXTENTS = (6.0, 2.0)  # views a scene is wide: many small shapes, and few large ones, whose statistics a sample finds harder
FIRST_SCENE = 700_000  # training draws its scenes elsewhere


def _latents(model: LeavesModel, style: str, extent: float, side: int) -> Tensor:
    """A scene of the world, encoded: (1, 4, side, side)."""
    seed = FIRST_SCENE + list(STYLES).index(style)
    picture = render(make_scene(style, seed, extent), side * FACTOR, (0, 0, extent, extent))
    return model.encode(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1)


def _at_once(model: LeavesModel, z: Tensor) -> Tensor:
    return model.autoencoder.decoder(z * model._scale + model._shift).clamp_(-1, 1)


@torch.inference_mode()
def tiled(device: torch.device, *, side: int, repeats: int, memory_sides: Sequence[int]) -> dict[str, Any]:
    """The embedded decoder on `side` x `side` latents, timed in turn, and its peak memory on pictures of `memory_sides` latents.

    Returns:
        "rows": each scene's largest difference in levels of 255 and the share of values that are more than two apart. "ratio": the middle
        of the paired times, in tiles over at once. "memory": torch's account of every allocation beyond the picture itself, in MiB; on a
        CPU only.
    """
    model = load_model(device=device)
    rows = []
    for style, extent in tqdm([(style, extent) for style in STYLES for extent in EXTENTS], desc="tiled", unit="scene"):
        z = _latents(model, style, extent, side)
        apart = (model.decode(z) - _at_once(model, z)).abs() * 127.5
        rows.append({"scene": style, "views": extent, "largest": round(float(apart.max()), 3), "beyond_two": float((apart > 2).float().mean())})
    runs = [(seconds(lambda: model.decode(z), device), seconds(lambda: _at_once(model, z), device)) for _ in range(repeats)]
    found: dict[str, Any] = {"pixels": side * FACTOR, "rows": rows, "ratio": median_ratio(runs), "memory": []}
    for large in memory_sides if device.type == "cpu" else ():
        z = torch.randn((1, 4, large, large), generator=torch.Generator().manual_seed(0))
        picture = 4 * 3 * (large * FACTOR) ** 2 / MIB
        found["memory"].append({"pixels": large * FACTOR, "picture_mib": picture, "beyond_mib": round(allocated_peak(partial(model.decode, z)) - picture, 1)})
    return found
