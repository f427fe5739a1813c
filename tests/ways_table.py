"""The rows of docs/ways.md, which `tests/acceptance/test_ways.py` writes, and of other pages' tables of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["Row", "put_rows"]


class Line(Protocol):
    """What a table has a line for."""

    def line(self, what: str) -> str:
        """Of the table."""
        ...


class Row(NamedTuple):
    """What came of one way: pictures or a sentence, how many infotexts name APT, and whether the next ordinary jobs are the same to the bit."""

    outcome: str
    claims: str
    same: bool

    def line(self, what: str) -> str:
        """Of the table."""
        return f"| {what} | {self.outcome} | {self.claims} | {'the same' if self.same else 'DIFFERS'} |"


def put_rows(page: Path, rows: Mapping[str, Line]) -> None:
    """Put what was measured into the rows of a page that it has already; the others stay."""
    lines = page.read_text().splitlines()
    for at, line in enumerate(lines):
        what = line.removeprefix("| ").partition(" | ")[0]
        if line.startswith("| ") and what in rows:
            lines[at] = rows[what].line(what)
    page.write_text("\n".join(lines) + "\n")
