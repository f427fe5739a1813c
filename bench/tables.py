"""Markdown tables for the docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["table"]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats are shown with four figures."""
    shown = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["-"] * len(head), *shown])
