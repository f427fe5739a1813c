"""What the benchmark upscales: scenes whose true large picture can be rendered, and pictures that the model made itself.

Picture number i has style i mod 4 and scene or seed i // 4, so the first n of them are the same for every count. What is slow to
make is kept in the work folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.job import Job, from_style
from apt_ext.demo.model import NATIVE, LeavesModel, load_model
from apt_ext.demo.world import STYLES, make_scene, render

__all__ = ["KINDS", "PIXELS", "Bases", "BenchModel", "keep", "load_bases", "open_model", "strata", "style_and_scene", "true_pictures"]

KINDS = ("encoded", "generated", "reference")
PIXELS = NATIVE[0] * FACTOR
FIRST_SCENE = {"encoded": 500_000, "reference": 900_000}  # training draws its scenes elsewhere


@dataclass(frozen=True)
class BenchModel:
    """A model, the start of its file's SHA-256, and the file's name."""

    model: LeavesModel
    name: str
    sha256: str


@dataclass(frozen=True)
class Bases:
    """`latent` (B, 4, 16, 16), `picture` (B, 3, 64, 64) decoded from it, `style` (B,) indices for the model, `numbers` of the pictures."""

    kind: str
    numbers: tuple[int, ...]
    latent: Tensor
    picture: Tensor
    style: Tensor


def open_model(path: Path) -> BenchModel:
    """Load a model's weights file."""
    return BenchModel(load_model(path), path.name, hashlib.sha256(path.read_bytes()).hexdigest())


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


def style_and_scene(number: int) -> tuple[str, int]:
    """Style and scene of a picture by its number."""
    styles = list(STYLES)
    return styles[number % len(styles)], number // len(styles)


def strata(count: int) -> Tensor:
    """(count,) the styles' numbers of the first pictures."""
    return torch.arange(count) % len(STYLES)


def true_pictures(kind: str, numbers: Sequence[int], size: int, work: Path) -> Tensor:
    """Renders of the "encoded" or the "reference" scenes: (B, 3, size, size) in -1..1."""

    def one(number: int) -> NDArray[np.generic]:
        style, scene = style_and_scene(number)
        seed = FIRST_SCENE[kind] + scene
        return keep(work / "renders" / f"{style}-{seed}-{size}.npy", lambda: render(make_scene(style, seed), size))

    return torch.from_numpy(np.stack([one(number) for number in numbers])).permute(0, 3, 1, 2).float() / 127.5 - 1


def _generated(bench: BenchModel, numbers: Sequence[int], work: Path) -> Tensor:
    def one(number: int) -> NDArray[np.generic]:
        style, scene = style_and_scene(number)
        job = Job(sampler="dpmpp_2m", schedule="karras", style=style, seed=scene * len(STYLES) + number % len(STYLES))
        path = work / "samples" / f"{bench.sha256[:12]}-{job.seed}.npy"
        return keep(path, lambda: from_style(bench.model, job, steps=30).latent[0].numpy())

    return torch.from_numpy(np.stack([one(number) for number in numbers])).float()


def load_bases(kind: str, bench: BenchModel, numbers: Sequence[int], work: Path) -> Bases:
    """The bases with these numbers, one of `KINDS`; "reference" are scenes of their own that the kernel distance compares with."""
    latent = _generated(bench, numbers, work) if kind == "generated" else bench.model.encode(true_pictures(kind, numbers, PIXELS, work))
    style = torch.tensor([bench.model.style_index(style_and_scene(number)[0]) for number in numbers])
    return Bases(kind, tuple(numbers), latent, bench.model.decode(latent), style)
