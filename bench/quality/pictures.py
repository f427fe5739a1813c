"""What the benchmark enlarges: scenes and photographs whose true large picture is known.

Scene number i has style i mod 4 and is scene i // 4 of it, photograph i is the i-th of `PHOTOGRAPHS`, so the first n of them are the same for every
count. The truth at 4x is a picture of 256 pixels; at 2x, and for the input, it is shrunk by area means.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.model import NATIVE, LeavesModel, load_model
from apt_ext.demo.world import STYLES, make_scene, render

__all__ = ["LARGEST", "PHOTOGRAPHS", "PIXELS", "SETS", "BenchModel", "keep", "model_of", "open_model", "strata", "style_of", "true_pictures", "world_digest"]

SETS = ("scenes", "photographs")
PIXELS = NATIVE[0] * FACTOR
LARGEST = 4 * PIXELS
FIRST_SCENE = {"scenes": 500_000, "reference": 900_000}  # training draws its scenes elsewhere
PHOTO_FOLDER = Path(__file__).parents[1] / "photos"
PHOTOGRAPHS = (
    *("dog", "colosseum", "fig", "peaks", "cat", "petra", "brushes", "moose"),
    *("dogs", "chenonceau", "dandelion", "stream", "duck", "hopper", "cow", "wine"),
)


@dataclass(frozen=True)
class BenchModel:
    """A weights file: its name, the start of its SHA-256, and where it is."""

    name: str
    sha256: str
    path: Path


def open_model(path: Path) -> BenchModel:
    """Name a model's weights file; it is loaded only when it is used."""
    return BenchModel(path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:12], path)


@cache
def model_of(bench: BenchModel) -> LeavesModel:
    """The loaded model."""
    return load_model(bench.path)


@cache
def world_digest() -> str:
    """Names what the procedural world draws: results on scenes of another world are others."""
    drawn = [render(make_scene(style, FIRST_SCENE["scenes"]), 32).tobytes() for style in STYLES]
    return hashlib.sha256(b"".join(drawn)).hexdigest()[:12]


def keep(path: Path, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """The array in a .npy file, made and written whole where it is not there yet; processes side by side may do so at once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, make())
        part.replace(path)
    made: NDArray[np.generic] = np.load(path)
    return made


def style_of(kind: str, number: int) -> str:
    """The model's style of a picture."""
    return "photo" if kind == "photographs" else list(STYLES)[number % len(STYLES)]


def strata(kind: str, count: int) -> Tensor:
    """(count,) what is drawn from apart: a scene's style; photographs are all of one kind."""
    return torch.zeros(count, dtype=torch.long) if kind == "photographs" else torch.arange(count) % len(STYLES)


def _largest(kind: str, number: int, work: Path) -> NDArray[np.generic]:
    if kind == "photographs":
        return np.asarray(Image.open(PHOTO_FOLDER / f"{PHOTOGRAPHS[number]}.webp").convert("RGB"))
    style, seed = style_of(kind, number), FIRST_SCENE[kind] + number // len(STYLES)
    return keep(work / "renders" / world_digest() / f"{style}-{seed}.npy", lambda: render(make_scene(style, seed), LARGEST))


def true_pictures(kind: str, numbers: Sequence[int], side: int, work: Path) -> Tensor:
    """The true pictures at a size, as a file of 8 bits would hold them: (B, 3, side, side) in -1..1.

    Args:
        kind: one of `SETS`, or "reference" for scenes of their own.
        side: in pixels, at most `LARGEST`. At the model's native size they are the inputs.
        work: folder in which renders are kept.
    """
    x = torch.from_numpy(np.stack([_largest(kind, number, work) for number in numbers])).permute(0, 3, 1, 2).double()
    return (F.interpolate(x, size=(side, side), mode="area").round() / 127.5 - 1).float()
