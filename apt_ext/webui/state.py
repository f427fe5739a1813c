"""What the adapter keeps of a processing object while its job runs: beside it, for others copy and send all that stands on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from PIL import Image
from torch import Tensor

from apt_ext.core.borders import NOWHERE
from apt_ext.core.types import Around
from apt_ext.core.windows import Window
from apt_ext.webui.page.request import Request
from apt_ext.webui.words.seen import Seen
from apt_ext.webui.words.windows import Encodings

__all__ = ["Beside", "Job", "job_of", "keep_job", "stay", "without_job"]

T = TypeVar("T")


class Beside(Generic[T]):
    """A value for each of some objects that cannot be hashed, as long as the object lives; a copy of it has none."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], T]] = {}

    def put(self, owner: Any, value: T) -> None:
        """Keep a value, in place of the one before."""
        key = id(owner)
        self._kept[key] = weakref.ref(owner, lambda _: self._kept.pop(key, None)), value

    def get(self, owner: Any) -> T | None:
        """What is kept of it, or None."""
        there = self._kept.get(id(owner))
        return there[1] if there is not None and there[0]() is owner else None

    def pop(self, owner: Any) -> T | None:
        """The same, and keep it no longer."""
        value = self.get(owner)
        if value is not None:
            del self._kept[id(owner)]
        return value


def stay(model: Any) -> None:
    """Nothing works in tiles, so nothing has to follow."""


@dataclass
class Job:
    """One run of `process_images`.

    Attributes:
        request: what the user asked for.
        base: the first pass's latents, for the hires pass of one batch; `decoded`: its pictures, where the host has decoded them.
        upscaler: what enlarges, from `upscalers.resolved`. `own_upscaler`: whether that is APT's setting, and not the host's field.
            `named`: whether the host's field was empty and is filled for the length of the job.
        ran: whether the phases of this batch have run. `small`: the pictures that they started from, and a mask of what may change.
        jobs: how many jobs of the host's bar the phases take. `first_job`: where the bar stood when this run began.
        follow: for the hires pass, what to call where another model takes the first one's place; see `tiled_vae`.
        around: the axes along which the picture is seamless.
        seen: where the first pass saw the words of its prompts, for the hires pass of one batch.
        encoded: conditioning of the windows' prompts.
        labels: (batch, picture) -> the last phase's windows and what each keeps of the prompt.
        drawn: finished pictures of these, with their infotexts.
    """

    request: Request
    base: Tensor | None = None
    decoded: list[Image.Image] = field(default_factory=list)
    upscaler: str = "lanczos"
    own_upscaler: bool = True
    named: bool = False
    ran: bool = False
    small: list[Image.Image] = field(default_factory=list)
    jobs: int = 1
    first_job: int | None = None
    follow: Callable[[Any], None] = stay
    around: Around = NOWHERE
    seen: Seen | None = None
    encoded: Encodings = field(default_factory=Encodings)
    labels: dict[tuple[int, int], tuple[list[Window], list[str]]] = field(default_factory=dict)
    drawn: list[tuple[Image.Image, str]] = field(default_factory=list)

    @property
    def prompts(self) -> bool:
        """Whether local windows get prompts of their own, by their words or by regions."""
        return self.words or bool(self.request.options.parts())

    @property
    def words(self) -> bool:
        """Whether a window keeps of its prompt only what is seen in it."""
        return self.request.options.method == "accdiffusion" and self.request.options.word_threshold > 0


_jobs: Beside[Job] = Beside()


def job_of(p: Any) -> Job | None:
    """The job attached to a processing object."""
    return _jobs.get(p)


def keep_job(p: Any, job: Job) -> None:
    """Attach a job to a processing object."""
    _jobs.put(p, job)


def without_job(p: Any) -> Job | None:
    """Take the job off a processing object again, and say which it was."""
    return _jobs.pop(p)
