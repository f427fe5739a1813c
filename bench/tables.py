"""Markdown tables for the docs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["put", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats are shown with four figures."""
    shown = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["-"] * len(head), *shown])


def put(table: str, text: str) -> str:
    """The text with the table of the same first line replaced by this one; as it was where it has none."""
    head, _, rest = table.partition("\n")
    return re.sub(rf"{re.escape(head)}\n(?:\|.*\n)+", lambda _: f"{head}\n{rest}\n", text)
