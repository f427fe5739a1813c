"""Plots for the docs as SVG, without a plotting library: lines over two logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["loglog"]

WIDTH, HEIGHT, MARGIN = 640, 400, 70
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b")


def loglog(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG picture of named lines through points (x, y), all above 0; ticks stand at the points' x and at powers of ten of y."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    span = math.log(xs[-1] / xs[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = math.log(x / xs[0]) / span, (math.log10(y) - low) / max(1, high - low)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'

    middle = HEIGHT / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 28, title),
        text(WIDTH / 2, HEIGHT - 18, x_label),
        text(20, middle, y_label, more=f' transform="rotate(-90 20 {middle})"'),
    ]
    for x in xs:
        at = place(x, 10.0**low)
        parts.append(text(at[0], at[1] + 18, f"{x:g}"))
    for power in range(low, high + 1):
        at = place(xs[0], 10.0**power)
        parts += [text(at[0] - 8, at[1] + 4, f"{10.0**power:g}", "end"), f'<path d="M{at[0]:.1f} {at[1]:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>']
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(MARGIN + 12, MARGIN + 18 * k, name, "start", f' fill="{colour}"'))
    return "\n".join([*parts, "</svg>"]) + "\n"
