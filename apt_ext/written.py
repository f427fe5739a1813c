"""Settings that are written as a text, read."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["AUTO", "REGION", "Region", "read_ratios", "read_regions", "read_window"]

AUTO = "auto"
WINDOW = re.compile(r"(\d{1,5})\s*(?:x\s*(\d{1,5}))?")


REGION = "0-50% x 0-100%: a red barn"
SPAN = r"(\d+(?:\.\d+)?)\s*%?\s*-\s*(\d+(?:\.\d+)?)\s*%?"
LINE = re.compile(rf"{SPAN}\s*[xX]\s*{SPAN}\s*:\s*(\S.*)")


class Region(NamedTuple):
    """A part of the picture with a text of its own; its sides are shares of the picture, 0 to 1."""

    top: float
    left: float
    bottom: float
    right: float
    text: str


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


def read_regions(text: str) -> tuple[Region, ...]:
    """Lines such as `REGION`: from left to right x from top to bottom, in percent of the picture, and a text. Empty lines are left out.

    Raises:
        ValueError: in one sentence, for a line that cannot be read.
    """
    made = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        shown = f"Regions: line {number}, {line.strip()[:60]!r},"
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"{shown} cannot be read; write lines such as '{REGION}', from left to right x from top to bottom")
        left, right, top, bottom = (float(side) / 100 for side in found.groups()[:4])
        if not (left < right <= 1 and top < bottom <= 1):
            raise ValueError(f"{shown} is no part of the picture; use rising percentages from 0 to 100")
        if re.search(r"<[^>]*:|\bAND\b", found[5]):
            raise ValueError(f"{shown} has a LoRA or an AND, which act on the whole picture; put them into the prompt")
        made.append(Region(top, left, bottom, right, found[5]))
    return tuple(made)
