"""How fast this machine was, so that the panel can say how long a job will take."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import torch

from apt_ext.core.types import Size

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

__all__ = ["Measuring", "Pace", "last_pace"]


class Pace(NamedTuple):
    """What views of the model took: seconds for each of a picture, guidance included, and the most MiB so far; 0 where nobody tells. `gpu`: whether they
    are a GPU's, and not the server's own."""

    seconds: float
    memory: float
    gpu: bool


_last: dict[tuple[str, Size], Pace] = {}


def last_pace(family: str, window: Size) -> Pace | None:
    """Of the last pass with a family of checkpoints at a window's size in latent pixels, since the WebUI was started."""
    return _last.get((family, window))


def _memory() -> tuple[float, bool]:
    """The most MiB so far, and whether they are a GPU's."""
    for kind in (torch.cuda, getattr(torch, "xpu", None)):
        if kind is not None and kind.is_available():
            return kind.max_memory_allocated() / 2**20, True
    if torch.backends.mps.is_available():
        return torch.mps.driver_allocated_memory() / 2**20, True
    if resource is None:
        return 0.0, False
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10), False


class Measuring:
    """Times the views of a pass, and remembers the pace of its last phase.

    Args:
        family, window: as in `last_pace`. `pictures`: of the batch, which go through the model together.
    """

    def __init__(self, family: str, window: Size, pictures: int):
        self._key, self._pictures = (family, window), pictures
        self.begin()

    def begin(self) -> None:
        """A phase begins, with work that is not the model's."""
        self._views, self._began = 0, 0.0

    def done(self, count: int) -> None:
        """So many views of every picture are done. The clock runs from the first of a phase."""
        now = time.perf_counter()
        if not self._began:
            self._began = now
            return
        self._views += count
        _last[self._key] = Pace((now - self._began) / self._views / self._pictures, *_memory())
