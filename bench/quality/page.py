"""The quality benchmark's tables and plots for the docs, made from its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.plots import Line, draw
from bench.tables import table

__all__ = ["page", "plots", "write"]

Row = Mapping[str, Any]

MARKS = {"better": " ▲", "worse": " ▼", "not told apart": " =", None: ""}
COLUMNS = {
    "kernel_windows": "kernel distance, windows",
    "kernel_strong": "by 8 components",
    "kernel_whole": "whole",
    "spectrum_below": "spectrum below",
    "spectrum_above": "above Nyquist",
    "agreement": "agreement dB",
    "structure": "structure",
    "repetition": "repetition",
    "seams": "seams",
    "monotonicity": "monotonicity",
    "shift_mean": "sub-grid mean",
    "shift_std": "sub-grid std",
}
ANSWERS = ("kernel_windows", "kernel_strong", "kernel_whole", "agreement", "structure", "spectrum_above", "seams", "repetition")
LEGEND = (
    "Values are means over the pictures; the kernel distance of windows has its 95 % interval. ▲ better, ▼ worse than DemoFusion as published with "
    "as many steps (in *presets* its own 50, elsewhere 30), = not told apart: the paired interval decides. No mark: nothing to compare with. "
    "A second table holds paired differences from the row that a group's question asks about, with 95 % intervals; of what is best at a value, those of the "
    "distance to it."
)


def _value(row: Row, name: str) -> str:
    found = row["measures"][name]
    verdict = row.get("against", {}).get("differences", {}).get(name, {}).get("verdict")
    extent = f" ({found['low']:.2f} to {found['high']:.2f})" if name == "kernel_windows" else ""
    return f"{found['mean']:.2f}{extent}{MARKS[verdict]}"


def _group(rows: Sequence[Row]) -> str:
    """A group's table. Where some of it is guided, the network's passes are shown beside the evaluations of windows."""
    guided = any("passes" in row for row in rows)
    head = ["setting", "evaluations", *(["network passes"] if guided else []), *COLUMNS.values()]
    return table(
        head,
        [
            [row["name"], row["evaluations"], *([row.get("passes", row["evaluations"])] if guided else []), *(_value(row, name) for name in COLUMNS)]
            for row in rows
        ],
    )


def _beside(rows: Sequence[Row]) -> str:
    """The group's own question: each row's paired difference from the row that it is to be compared with."""
    found = [row for row in rows if "beside" in row]
    if not found:
        return ""

    def cell(row: Row, name: str) -> str:
        of = row["beside"]["differences"][name]
        return f"{of['mean']:+.2f} ({of['low']:+.2f} to {of['high']:+.2f}){MARKS[of['verdict']]}"

    head = ["setting", "minus", "pictures", *(COLUMNS[name] for name in ANSWERS)]
    return "\n\n" + table(head, [[row["name"], row["beside"]["name"], row["beside"]["pictures"], *(cell(row, name) for name in ANSWERS)] for row in found])


def _points(rows: Sequence[Row], x: Sequence[float], measure: str) -> list[tuple[float, float, float, float]]:
    """(x, value, low, high) of the rows, in the order of x."""
    found = [row["measures"][measure] for row in rows]
    return sorted((at, m["mean"], m["low"], m["high"]) for at, m in zip(x, found, strict=True))


def _chosen(summary: Mapping[str, Any], **wanted: Any) -> list[Row]:
    first = {"base": "encoded", "model": summary["models"][0]["sha256"][:12], "seed": summary["seeds"][0]}
    return [row for row in summary["rows"] if all(row[name] == value for name, value in {**first, **wanted}.items())]


def plots(summary: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SVG of everything that there are enough rows for."""
    made = {}
    distance = "kernel distance of windows (lower is better)"
    for scale in summary["scales"]:
        rows = [row for row in _chosen(summary, scale=scale, group="presets") if row["how"] == "windows"]
        if len(rows) > 1:
            lines = [Line(row["name"], _points([row], [row["evaluations"]], "kernel_windows")) for row in rows]
            made[f"presets-{scale}x"] = draw(f"Presets at {scale}x: quality against cost", "window evaluations", distance, lines)
    gamma = [row for row in _chosen(summary, scale=2, group="gamma") if row["options"]["gamma"] != "auto"]
    if len(gamma) > 2:
        lines = []
        for share in sorted({row["options"]["shortcut"] for row in gamma}):
            some = [row for row in gamma if row["options"]["shortcut"] == share]
            lines.append(Line(f"shortcut {share:g}", _points(some, [row["options"]["gamma"] for row in some], "kernel_windows"), joined=True))
        made["gamma"] = draw("Scale-aware Scheduling at 2x, with matching", "gamma", distance, lines)
    for name, field, label in (("shortcut", "shortcut", "shortcut"), ("matching", "matching", "matching strength"), ("tolerance", "tolerance", "tolerance")):
        rows = _chosen(summary, scale=2, group=name)
        rows = [row for row in rows if row["options"]["steps"] == rows[0]["options"]["steps"]]
        if len(rows) > 2:
            lines, apart = [], "reanchor" if name == "matching" else "residual"
            for value in sorted({row["options"][apart] for row in rows}):
                some = [row for row in rows if row["options"][apart] == value]
                text = "DemoFusion" if len(some) == len(rows) else f"re-anchoring {value}" if apart == "reanchor" else f"residual's exponent {value:g}"
                lines.append(Line(text, _points(some, [row["options"][field] for row in some], "kernel_windows"), joined=True))
            # Without the residual a high start ends in noise, thousands of times as far away.
            made[name] = draw(f"{label.capitalize()} at 2x", label, distance, lines, log="y" if name == "shortcut" else "")
    curves = [row for row in _chosen(summary, scale=2, group="methods") if row["name"].startswith("DemoFusion")]
    if curves:
        lines = [Line(row["name"], [(k, v, None, None) for k, v in enumerate(row["curve"][-1]["steps"])], joined=True) for row in curves]
        made["monotonicity"] = draw("Window monotonicity through the steps at 2x", "step", "lag-one autocorrelation of the denoised estimate", lines)
    return made


def page(summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole page in Markdown; `pictures` are the names of the plots beside it."""
    models = {model["sha256"][:12]: f"model {number} ({model['sha256'][:12]})" for number, model in enumerate(summary["models"], 1)}

    def place(what: Row) -> str:
        return f"{what['group']}, {what['scale']}x, {what['base']} bases, {models[what['model']]}, seed {what['seed']}"

    parts = [
        "# Quality: the tables",
        "Made by `make bench-quality` from [quality.json](quality.json); do not edit. What follows from them is in [quality.md](../quality.md).",
        ", ".join(f"{key} {value}" for key, value in summary["machine"].items()),
        LEGEND,
        table(["measure", "meaning", "best"], [[COLUMNS[name], m["text"], m["goal"]] for name, m in summary["measures"].items() if name in COLUMNS]),
        *(f"![{name}](quality-{name}.svg)" for name in pictures),
    ]
    grouped: dict[str, list[Row]] = {}
    for row in summary["rows"]:
        grouped.setdefault(f"{place(row)}, {row['pictures']} pictures", []).append(row)
    parts += [f"## {title}\n\n{_group(rows)}{_beside(rows)}" for title, rows in grouped.items()]
    parts += ["## Bars", table(["bar", "met", "found"], [[bar["bar"], "yes" if bar["met"] else "NO", bar["found"]] for bar in summary["bars"]])]
    missing: dict[str, list[Mapping[str, Any]]] = {}
    for what in summary["missing"]:
        missing.setdefault(place(what), []).append(what)
    if missing:
        parts += [
            "## Not measured yet",
            f"Or on fewer than {summary['count']} pictures; how many is in brackets. *All* is everything that the group has there.",
        ]
        some = {where: [what for what in all_ if what["pictures"]] and all_ for where, all_ in missing.items()}
        names = {where: ", ".join(f"{what['name']} ({what['pictures']})" for what in all_) or "all (0)" for where, all_ in some.items()}
        parts += [table(["where", "settings"], [[where, text] for where, text in names.items()])]
    return "\n\n".join(parts) + "\n"


def write(source: Path) -> None:
    """Write the page and the plots beside the JSON file."""
    summary = json.loads(source.read_text())
    made = plots(summary)
    for name, svg in made.items():
        source.with_name(f"{source.stem}-{name}.svg").write_text(svg)
    source.with_suffix(".md").write_text(page(summary, list(made)))
