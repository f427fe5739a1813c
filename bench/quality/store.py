"""Results on disk: per-picture arrays that grow, written in one piece each time, so that a run can be killed at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Results", "append", "length", "load"]

Results = dict[str, NDArray[Any]]
"""Arrays by name; the first dimension of each counts the pictures, from number 0."""


def load(path: Path) -> Results:
    """What is there so far; nothing at all is an empty dictionary."""
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def length(path: Path) -> int:
    """How many pictures' results there are."""
    if not path.exists():
        return 0
    with np.load(path) as file:
        return len(file[file.files[0]])


def append(path: Path, new: Results, start: int) -> None:
    """Add the results of the pictures from number `start` on.

    Where another process has got to other pictures meanwhile, nothing is added: numbers are joined only where they follow on each other.
    """
    old = load(path)
    if old and len(next(iter(old.values()))) != start:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.concatenate([old[name], value]) if old else value for name, value in new.items()})
    part.replace(path)
