"""The front of fidelity against detail: one picture per scale, and the table that presets are chosen from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from bench.quality.bars import EDGES, KERNEL, LOSS, MISSING, misses
from bench.quality.pictures import SETS
from bench.quality.results import Row, find
from bench.quality.statistics import shared, summary
from bench.tables import table

__all__ = ["draw_front", "front_rows", "front_table", "presets_table"]

LEAST, WORST = -1.0, 1.5
NAMED = ("presets", "baselines", "published")


def front_rows(results: Mapping[str, Any], scale: int, kind: str, model: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(group, name) -> the row's `summary`, of every row that has at least two pictures."""
    rows = [row for row in results["rows"] if (row["scale"], row["kind"]) == (scale, kind) and row["model"] == model]
    lanczos = find(rows, name="Lanczos")
    return {(row["group"], row["name"]): summary(row, lanczos) for row in rows if lanczos and shared(row, lanczos) > 1}


def _points(axes: Any, found: Mapping[tuple[str, str], Mapping[str, Any]], x: str, y: str) -> None:
    for number, (named, colour) in enumerate(((False, "tab:gray"), (True, "tab:blue"))):
        some = {key: value for key, value in found.items() if (key[0] in NAMED) == named}
        sizes = [14 + value["evaluations"] / 12 for value in some.values()]
        axes.scatter([v[x] for v in some.values()], [v[y] for v in some.values()], s=sizes, c=colour, alpha=0.45 + 0.25 * number, linewidths=0)
    for (group, name), value in found.items():
        if group in NAMED:
            axes.annotate(name, (value[x], value[y]), fontsize=7, xytext=(3, 3), textcoords="offset points")


def draw_front(results: Mapping[str, Any], scale: int, model: str) -> str:
    """SVG: scenes above, photographs below; edges in place against the kernel distance, PSNR against missing power, each over Lanczos', with the bars.

    A dot's area grows with its window evaluations.
    """
    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "apt", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 8.5), layout="constrained")
        for row, kind in enumerate(SETS):
            found = front_rows(results, scale, kind, model)
            left, right = figure.add_subplot(2, 2, 2 * row + 1), figure.add_subplot(2, 2, 2 * row + 2)
            # With few pictures Lanczos' own distance may be next to nothing, and shares of it are then beyond any scale.
            _points(left, {key: {**value, "kernel": min(max(value["kernel"], LEAST), WORST)} for key, value in found.items()}, "edges", "kernel")
            left.axvline(EDGES, color="tab:red", linewidth=0.8)
            left.axhline(KERNEL, color="tab:red", linewidth=0.8)
            left.set(
                title=f"{kind}, {scale}x",
                xlabel="edges in place",
                ylabel=f"kernel distance over Lanczos' ({LEAST:g} to {WORST:g})",
                ylim=(LEAST - 0.1, WORST + 0.1),
            )
            _points(right, found, "psnr", "missing")
            lanczos = found.get(("baselines", "Lanczos"))
            if lanczos:
                right.axvline(lanczos["psnr"] - LOSS, color="tab:red", linewidth=0.8)
            right.axhline(MISSING, color="tab:red", linewidth=0.8)
            right.set(title=f"{kind}, {scale}x", xlabel="PSNR to the truth, dB", ylabel="missing power over Lanczos'")
            for axes in (left, right):
                axes.grid(alpha=0.3)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _cells(found: Sequence[Mapping[str, Any] | None], name: str, form: str) -> str:
    return " / ".join("-" if value is None else format(value[name], form) for value in found)


def _verdict(found: Sequence[Mapping[str, Any] | None]) -> str:
    """F where both sets clear the bars on fidelity, D where they clear those on detail as well."""
    known = [(kind, value) for kind, value in zip(SETS, found, strict=True) if value is not None]
    if not known or not all(check.met for kind, value in known for check in misses(value, kind, detailed=False)):
        return ""
    return "F D" if all(check.met for kind, value in known for check in misses(value, kind, detailed=True)) else "F"


def front_table(results: Mapping[str, Any], scale: int, model: str) -> str:
    """One row per setting, "scenes / photographs" in each cell."""
    both = [front_rows(results, scale, kind, model) for kind in SETS]
    head = ["group", "setting", "evaluations", "pictures", "PSNR", "dB to Lanczos", "SSIM", "edges", "missing power", "kernel", "agreement", "seams", "bars"]
    lines: list[Sequence[Any]] = []
    for key in dict.fromkeys(key for found in both for key in found):
        found = [each.get(key) for each in both]
        one: Row = next(value for value in found if value is not None)
        lines.append(
            [
                *key,
                one["evaluations"],
                _cells(found, "pictures", "d"),
                _cells(found, "psnr", ".2f"),
                " / ".join("-" if value is None else f"{-value['loss']:+.2f}" for value in found),
                _cells(found, "ssim", ".3f"),
                _cells(found, "edges", ".3f"),
                _cells(found, "missing", ".2f"),
                _cells(found, "kernel", ".2f"),
                _cells(found, "agreement", ".1f"),
                _cells(found, "seams", ".2f"),
                _verdict(found),
            ]
        )
    return table(head, lines)


def presets_table(results: Mapping[str, Any], model: str) -> str:
    """The presets, and the base methods as published, against Lanczos: "scenes / photographs" in each cell."""
    head = ["preset", "scale", "evaluations", "pictures", "PSNR, dB", "edges in place", "Lanczos' edges", "missing power", "kernel distance", "agreement, dB"]
    lines: list[Sequence[Any]] = []
    for scale in sorted({row["scale"] for row in results["rows"]}):
        both = [front_rows(results, scale, kind, model) for kind in SETS]
        for key in dict.fromkeys(key for found in both for key in found if key[0] in ("presets", "published")):
            found = [each.get(key) for each in both]
            one = next(value for value in found if value is not None)
            lines.append(
                [
                    key[1],
                    f"{scale}x",
                    one["evaluations"],
                    _cells(found, "pictures", "d"),
                    " / ".join("-" if value is None else f"{-value['loss']:+.2f}" for value in found),
                    _cells(found, "edges", ".3f"),
                    _cells([each.get(("baselines", "Lanczos")) for each in both], "edges", ".3f"),
                    _cells(found, "missing", ".2f"),
                    _cells(found, "kernel", ".2f"),
                    _cells(found, "agreement", ".1f"),
                ]
            )
    return table(head, lines)
