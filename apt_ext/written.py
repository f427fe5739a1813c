"""Settings that are written as a text, read."""

from __future__ import annotations

import math
import re

__all__ = ["read_ratios", "read_window"]

AUTO = "auto"
WINDOW = re.compile(r"(\d{1,5})\s*(?:x\s*(\d{1,5}))?")


def read_ratios(text: object) -> tuple[float, ...] | None:
    """Ratios such as "1.5,2,4", rising from 1; None where they are no such list."""
    try:
        ratios = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        return None
    good = all(math.isfinite(ratio) and ratio >= 1 for ratio in ratios) and list(ratios) == sorted(set(ratios))
    return ratios if good else None


def read_window(text: str) -> tuple[int, int] | None:
    """(width, height) in pixels of "640x512", or of "512", which is a square; None for anything else."""
    found = WINDOW.fullmatch(text.strip().lower())
    if found is None:
        return None
    width, height = int(found[1]), int(found[2] or found[1])
    return (width, height) if width and height else None
