"""The quality benchmark's page and plots for the docs, made from its results file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.quality.bars import check_bars
from bench.quality.front import draw_front, front_table, presets_table
from bench.quality.pictures import SETS
from bench.quality.results import Row, find, read
from bench.quality.settings import groups
from bench.quality.statistics import MEASURES, compare, known, mean_of, shared
from bench.tables import put, table

__all__ = ["page", "write_page"]

MARKS = {"better": " ▲", "worse": " ▼", "not told apart": " ="}
COLUMNS = {
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "edges": ("edges in place", ".3f"),
    "above": ("power above Nyquist", ".2f"),
    "below": ("below", ".2f"),
    "kernel": ("kernel distance", ".1f"),
    "agreement": ("agreement, dB", ".1f"),
    "seams": ("seams", ".2f"),
    "spread": ("spread", ".3f"),
}
LEGEND = (
    "Values are means over the pictures. A group's first table holds values; the kernel distance has its 95 % interval (bootstrap over pictures, within their "
    "styles), and ▲ better, ▼ worse, = not told apart say how a value stands to plain Lanczos on the same pictures. A second table holds paired differences, "
    "with their intervals, from the row that a group's question asks about; of what is best at a value, differences of the distance to it. In the tables of "
    "the front, each cell has scenes / photographs; missing power and kernel distance are shares of Lanczos', F marks what clears the bars on fidelity, D "
    "those on detail as well."
)


def _value(row: Row, lanczos: Row | None, name: str) -> str:
    if name == "kernel" and not row["kernel"]:
        return "-"
    form = COLUMNS[name][1]
    found = mean_of(row, name)
    extent = f" ({found.low:{form}} to {found.high:{form}})" if name == "kernel" else ""
    mark = MARKS[compare(row, lanczos, name)[1]] if lanczos and lanczos is not row and name != "spread" and known(row, lanczos, name) else ""
    return f"{found.mean:{form}}{extent}{mark}"


def _beside(rows: Sequence[Row], questions: Mapping[str, str]) -> str:
    """Each row's paired differences from the row that it is to be compared with."""
    lines = []
    for row in rows:
        other = find(rows, name=questions.get(row["name"], ""))
        if other is None or other is row:
            continue
        cells = []
        for name, (_, form) in COLUMNS.items():
            if known(row, other, name):
                found, verdict = compare(row, other, name)
                cells.append(f"{found.mean:+{form}} ({found.low:+{form}} to {found.high:+{form}}){MARKS[verdict]}")
            else:
                cells.append("-")
        lines.append([row["name"], other["name"], shared(row, other), *cells])
    return "\n\n" + table(["setting", "minus", "pictures", *(text for text, _ in COLUMNS.values())], lines) if lines else ""


def _group(rows: Sequence[Row], lanczos: Row | None, questions: Mapping[str, str]) -> str:
    head = ["setting", "pictures", "evaluations", *(text for text, _ in COLUMNS.values())]
    lines = [[row["name"], shared(row), row["evaluations"], *(_value(row, lanczos, name) for name in COLUMNS)] for row in rows]
    return table(head, lines) + _beside(rows, questions)


def page(results: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole page in Markdown; `pictures` are the names of the plots beside it."""
    questions = {group: {setting.name: setting.beside for setting in settings} for group, settings in groups().items()}
    models = [model["sha256"] for model in results["models"]]
    scales = sorted({row["scale"] for row in results["rows"]})
    parts = [
        "# Quality: the tables",
        "Made by `make bench-quality` from [quality.json](quality.json); do not edit. What follows from them is in [quality.md](../quality.md).",
        ", ".join(f"{key} {value}" for key, value in results["machine"].items()),
        LEGEND,
        table(["measure", "meaning", "best"], [[COLUMNS[name][0], measure.text, measure.goal] for name, measure in MEASURES.items()]),
        "## Bars",
        table(["bar", "met", "found"], [[check.bar, "yes" if check.met else "NO", check.found] for check in check_bars(results)]),
        *(f"![{name}]({name})" for name in pictures),
    ]
    for model in models:
        for scale in scales:
            parts += [f"## The front at {scale}x, model {model}", front_table(results, scale, model)]
    for model in models:
        for scale in scales:
            for kind in SETS:
                here = [row for row in results["rows"] if (row["model"], row["scale"], row["kind"]) == (model, scale, kind)]
                for group in dict.fromkeys(row["group"] for row in here):
                    rows = [row for row in here if row["group"] == group]
                    parts += [f"## {group}, {scale}x, {kind}, model {model}", _group(rows, find(here, name="Lanczos"), questions.get(group, {}))]
    if results["missing"]:
        lines = [[f"{what['group']}, {what['scale']}x, {what['kind']}", what["name"], what["pictures"]] for what in results["missing"]]
        parts += ["## Not measured yet, or on fewer pictures than planned", table(["where", "setting", "pictures"], lines)]
    return "\n\n".join(parts) + "\n"


def write_page(source: Path) -> None:
    """Write the page and the plots beside the results file, and the presets' table into the page of the same name a folder further up, if it has one."""
    results = read(source)
    pictures = []
    for scale in sorted({row["scale"] for row in results["rows"]}):
        name = f"{source.stem}-front-{scale}x.svg"
        source.with_name(name).write_text(draw_front(results, scale, results["models"][0]["sha256"]))
        pictures.append(name)
    source.with_suffix(".md").write_text(page(results, pictures))
    essay = source.parents[1] / f"{source.stem}.md"
    if essay.is_file():
        essay.write_text(put(presets_table(results, results["models"][0]["sha256"]), essay.read_text()))
