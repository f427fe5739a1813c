"""What is wanted of a checkpoint: a job with words."""

from __future__ import annotations

from dataclasses import dataclass

from apt_ext.demo.wanted import BaseJob

__all__ = ["WINDOW_BATCH", "PromptJob"]

WINDOW_BATCH = 4  # windows in a model call where nothing is said, as in the WebUI: these networks are larger than the embedded one


@dataclass(frozen=True)
class PromptJob(BaseJob):
    """A job on a checkpoint. `prompt`: what the picture shows. `negative`: what it is not to show.

    Raises:
        ValueError: see `BaseJob`.
    """

    prompt: str = ""
    negative: str = ""
