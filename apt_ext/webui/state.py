"""What the adapter keeps on a processing object while its job runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from apt_ext.core.borders import NOWHERE
from apt_ext.core.types import Around
from apt_ext.core.windows import Window
from apt_ext.webui.page.request import Request
from apt_ext.webui.words.seen import Seen
from apt_ext.webui.words.windows import Encodings

__all__ = ["NAME", "Job", "job_of", "stay"]

NAME = "apt_job"


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


def job_of(p: Any) -> Job | None:
    """The job attached to a processing object."""
    return p.__dict__.get(NAME)
