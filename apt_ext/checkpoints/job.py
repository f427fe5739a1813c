"""What is wanted of a checkpoint: a job with words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apt_ext.demo.wanted import BaseJob
from apt_ext.options import Options

__all__ = ["WINDOW_BATCH", "PromptJob", "beside_mask"]

WINDOW_BATCH = 4  # windows in a model call where nothing is said, as in the WebUI: these networks are larger than the embedded one


@dataclass(frozen=True)
class PromptJob(BaseJob):
    """A job on a checkpoint. `prompt`: what the picture shows. `negative`: what it is not to show.

    Raises:
        ValueError: see `BaseJob`.
    """

    prompt: str = ""
    negative: str = ""


def beside_mask(options: Options) -> Options:
    """The options of a job with a mask: what is kept outside of it has statistics of its own, which must not move with the rest."""
    return replace(options, reanchor="off") if options.reanchor == "auto" else options
