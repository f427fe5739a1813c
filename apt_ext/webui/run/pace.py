"""How fast this machine was, so that the panel can say how long a job will take."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from apt_ext.core.types import Size

__all__ = ["Measuring", "Pace", "last_pace"]


class Pace(NamedTuple):
    """What views of the model took: seconds for each of a picture, guidance included, and the most MiB of a GPU so far; 0 where there is none."""

    seconds: float
    memory: float


_last: dict[tuple[str, Size], Pace] = {}


def last_pace(family: str, window: Size) -> Pace | None:
    """Of the last pass with a family of checkpoints at a window's size in latent pixels, since the WebUI was started."""
    return _last.get((family, window))


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
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        _last[self._key] = Pace((now - self._began) / self._views / self._pictures, memory)
