"""Plots for the docs, as SVG that is the same whenever the data are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib

__all__ = ["Line", "draw"]

Point = tuple[float, float, float | None, float | None]


class Line(NamedTuple):
    """Points (x, y, low, high) under one name; the interval may be None. `joined` draws a line through them."""

    name: str
    points: Sequence[Point]
    joined: bool = False


def draw(title: str, x: str, y: str, lines: Sequence[Line], log: str = "") -> str:
    """Named lines with their error bars as SVG; the axes in `log`, such as "xy", are logarithmic."""
    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "apt", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            xs, ys = [p[0] for p in line.points], [p[1] for p in line.points]
            bars = None
            if all(p[2] is not None and p[3] is not None for p in line.points):
                bars = [[max(0.0, p[1] - (p[2] or 0.0)) for p in line.points], [max(0.0, (p[3] or 0.0) - p[1]) for p in line.points]]
            axes.errorbar(xs, ys, yerr=bars, fmt="o-" if line.joined else "o", capsize=3, markersize=4, label=line.name)
        axes.set(title=title, xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
