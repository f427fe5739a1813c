"""Results of all rows, picture by picture, in one compact file that travels with the repository; tables, plots and bars are made from it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from apt_ext.demo.pictures import write_whole
from bench.machine import facts
from bench.quality.kernel import features, kernel_parts, whitening
from bench.quality.measures import dense
from bench.quality.measuring import VERSION
from bench.quality.pictures import PIXELS, true_pictures, world_digest
from bench.quality.runner import results_of
from bench.quality.settings import TRUTH
from bench.quality.store import Results
from bench.quality.tasks import Task

__all__ = ["Row", "collect", "find", "read", "row_of", "write"]

Row = Mapping[str, Any]
DIGITS = {"psnr": 2, "ssim": 3, "edges": 3, "below": 2, "above": 3, "agreement": 2, "seams": 2, "spread": 2}
KERNEL_DIGITS = 2
REFERENCES = 16
"""True pictures that the kernel distance's features are fitted to."""


@cache
def _whiten(kind: str, scale: int, work: Path) -> Any:
    """Fitted to windows of other scenes; of photographs, which are few, to windows of the mirrored truths that are cut at other places. It is the same for
    every row, so it favours none."""
    source = "reference" if kind == "scenes" else kind
    true = true_pictures(source, range(REFERENCES), PIXELS * scale, work).flip(3)
    return whitening(features(dense(true, PIXELS, 8 * scale).flatten(0, 1)))


def _kernel(results: Results, truth: Results, task: Task, counts: Collection[int], work: Path) -> dict[str, list[float]]:
    """Each picture's part of the kernel distance, over all pictures, and, of the baselines, which others are compared with, over the first of each count."""
    whiten, most = _whiten(task.kind, task.scale, work), len(results["windows"])
    x, true = (torch.from_numpy(each["windows"][:most]) for each in (results, truth))
    wanted = {most} if task.sampled else {most, *(n for n in counts if n < most)}
    return {str(n): [round(v, KERNEL_DIGITS) for v in kernel_parts(x[:n], true[:n], whiten).tolist()] for n in sorted(wanted) if n > 1}


def row_of(task: Task, work: Path, counts: Collection[int] = ()) -> Row | None:
    """What is known of a task; None where nothing is, or no truth to compare it with. `counts`: numbers of pictures that other rows have."""
    found, truth = results_of(task, work), results_of(Task(TRUTH, task.scale, task.kind, task.bench, task.count), work)
    if not found or not truth or len(truth["windows"]) < len(found["windows"]):
        return None
    return {
        "group": task.setting.group,
        "name": task.setting.name,
        "scale": task.scale,
        "kind": task.kind,
        "model": task.bench.sha256,
        "seed": task.seed,
        "evaluations": round(float(found["evaluations"].mean())),
        "seconds": round(float(found["seconds"].mean()), 2),
        "values": {name: [round(float(v), digits) for v in found[name]] for name, digits in DIGITS.items()},
        "kernel": _kernel(found, truth, task, counts, work),
    }


def collect(tasks: Sequence[Task], work: Path) -> dict[str, Any]:
    """All that is known of the tasks, and what is missing of them."""
    counts = {len(results["psnr"]) for results in (results_of(task, work) for task in tasks) if results}
    found = [(task, row_of(task, work, counts)) for task in tasks if task.setting != TRUTH]
    rows = [row for _, row in found if row]
    missing = [
        {"name": task.setting.name, "group": task.setting.group, "scale": task.scale, "kind": task.kind, "pictures": len(row["values"]["psnr"]) if row else 0}
        for task, row in found
        if row is None or len(row["values"]["psnr"]) < task.count
    ]
    return {
        "machine": facts(torch.device("cpu")),
        "measures": VERSION,
        "world": world_digest(),
        "models": [{"name": name, "sha256": sha} for name, sha in dict.fromkeys((task.bench.name, task.bench.sha256) for task in tasks)],
        "missing": missing,
        "rows": rows,
    }


def _usual(results: Mapping[str, Any]) -> Row:
    """What a row has where it does not say otherwise."""
    return {"model": results["models"][0]["sha256"], "seed": 1}


def _place(row: Row) -> tuple[Any, ...]:
    return row["scale"], row["kind"], row["group"], row["name"]


def _packed(rows: Sequence[Row], usual: Row) -> list[dict[str, Any]]:
    """Rows with their numbers as whole ones, in units of their last digit, and without what is usual: the file travels with the repository.

    One content stands there under several names, and what has no model in it for every model; numbers are given once, and other rows name the group
    and name that have the same.
    """
    given: dict[str, tuple[Any, ...]] = {}
    first: set[tuple[Any, ...]] = set()
    packed = []
    for row in rows:
        values = {name: [round(v * 10**digits) for v in row["values"][name]] for name, digits in DIGITS.items()}
        kernel = {n: [round(v * 10**KERNEL_DIGITS) for v in parts] for n, parts in row["kernel"].items()}
        numbers, place = {"values": values, "kernel": kernel}, _place(row)
        own = {name: value for name, value in row.items() if usual.get(name) != value and name not in numbers}
        key = json.dumps([place[:2], numbers])
        packed.append({**own, "same": given[key][2:]} if key in given else {**own, **numbers})
        if place not in first:  # a name means the first row that has it
            given.setdefault(key, place)
        first.add(place)
    return packed


def _unpacked(rows: Sequence[Row], usual: Row) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        full = {**usual, **{name: value for name, value in row.items() if name != "same"}}
        if "same" in row:
            there = first[_place({**row, "group": row["same"][0], "name": row["same"][1]})]
            full |= {name: there[name] for name in ("values", "kernel")}
        else:
            full["values"] = {name: [v / 10**digits for v in row["values"][name]] for name, digits in DIGITS.items()}
            full["kernel"] = {n: [v / 10**KERNEL_DIGITS for v in parts] for n, parts in row["kernel"].items()}
        first.setdefault(_place(row), full)
        found.append(full)
    return found


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write the file: JSON with one row a line, so that a change of a row is a change of a line. Numbers are whole, in units of `DIGITS`."""
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in results.items() if name != "rows")
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in _packed(results["rows"], _usual(results)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f'{{\n{head},\n"rows": [\n{rows}\n]\n}}\n'.encode())


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return {**found, "rows": _unpacked(found["rows"], _usual(found))}


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row with these properties."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)
