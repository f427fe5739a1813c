"""What a job is, and what it asks of a model: the words that the command line, the embedded model and other checkpoints share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from apt_ext.core.clock import sampler_calls
from apt_ext.core.conditioning import Condition, condition_views
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.ranks.ranks import Ranks
from apt_ext.core.types import Denoiser, ModelFacts, Size
from apt_ext.options import Options, Schedule, has_residual

__all__ = ["BaseJob", "Conditioned", "Job", "Model", "Source"]


@dataclass(frozen=True)
class BaseJob:
    """What is wanted of any model, besides the picture. `scale` is the linear factor; guidance is left out below the noise level `guided_above`.

    Raises:
        ValueError: on construction, in one sentence with the value and the remedy.
    """

    scale: float = 4.0
    options: Options = field(default_factory=Options)
    schedule: Schedule = field(default_factory=Schedule)
    guidance: float = 1.0
    seed: int = 1
    guided_above: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, (int, float)) and 1 < self.scale <= 16):
            raise ValueError(f"scale {self.scale!r} is out of range; use a number above 1 and up to 16")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} is out of range; use 0 to {2**32 - 1}")
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= 30):
            raise ValueError(f"guidance {self.guidance} is out of range; use 0 to 30")
        if not (math.isfinite(self.guided_above) and 0 <= self.guided_above <= 100):
            raise ValueError(f"guided above {self.guided_above} is out of range; use a noise level from 0 to 100")
        sampler_calls(self.schedule.sampler, has_residual(self.options))


@dataclass(frozen=True)
class Job(BaseJob):
    """What is wanted of the embedded model, which is told a style."""

    style: str = "photo"


@dataclass(frozen=True)
class Source:
    """Where a job starts.

    Attributes:
        latent: (1, C, h, w), clean. `base`: the base latent.
        pixels: (width, height) of the picture that they stand for.
        picture: (1, 3, H, W) in -1..1, that picture, its last column and row repeated up to whole latent pixels.
        mask: (1, 1, H, W) in 0..1, where something new may come in; None for everywhere.
        hints: (1, 3, H', W') in 0..1 each, control pictures of the whole; a model that wants more of them takes the picture itself.
    """

    latent: Tensor
    base: Tensor
    pixels: tuple[int, int]
    picture: Tensor
    mask: Tensor | None = None
    hints: tuple[Tensor, ...] = ()

    @property
    def covered(self) -> tuple[int, int]:
        """(width, height) in pixels that the latent covers."""
        return self.picture.shape[-1], self.picture.shape[-2]


class Conditioned(NamedTuple):
    """A model with a job's words in place: k-diffusion's denoiser, its other arguments (a row for each picture), and how views get theirs."""

    denoiser: Denoiser
    extra: dict[str, Any]
    condition: Condition = condition_views


class Model(Protocol):
    """A latent diffusion model as a job sees it.

    Attributes:
        device: where its latents are. `facts`: what the engine has to know. `sigmas`: (T,) its ascending noise levels.
        factor: pixels per latent pixel. `channels`: of a latent.
        smallest: rows x columns below which a picture is enlarged to the native area before anything else; 0 takes every size as it is.
        first_size: (rows, columns) in latent pixels of a picture that it makes by itself.
        prompts: whether it understands words, so that windows can have their own.
        about: what a report says of it.
        ranks: the processes that its calls are dealt out to; may be set before a job.
    """

    device: torch.device
    facts: ModelFacts
    sigmas: Tensor
    factor: int
    channels: int
    smallest: int
    first_size: Size
    prompts: bool
    about: dict[str, Any]
    ranks: Ranks

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, factor * h, factor * w) RGB in -1..1 -> (B, C, h, w) latents of about unit variance."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, factor * h, factor * w) in -1..1."""
        ...

    def conditioned(self, job: Any, source: Source | None = None) -> Callable[[PhaseSetup | None], Conditioned]:
        """The model for one job: for a phase of it, or, with None, for a picture of its own. `source`: of the job; None where there is no picture yet."""
        ...

    def infotext(self, job: Any, pixels: tuple[int, int]) -> str:
        """What is written into a picture file of (width, height), so that the job can be repeated from it."""
        ...
