"""The speed benchmark's page and plot for the docs, made from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import Line, draw
from bench.speed.bars import bars
from bench.tables import table

__all__ = ["page", "plot"]


def _of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    return table(list(columns.values()), [[row.get(key, "-") for key in columns] for row in rows])


VIEWS = {"window_batch": "window batch", "engine_view_s": "engine, s per view", "bare_view_s": "bare model, s per view", "ratio": "engine / bare"}
COLUMNS: dict[str, tuple[str, dict[str, str]]] = {
    "plan": (
        "Window evaluations, 1024 to 4096 pixels with windows of 128 latent pixels",
        {
            "name": "settings",
            "sampler": "sampler",
            "schedule": "schedule",
            "steps": "steps",
            "local": "local",
            "dilated": "dilated",
            "evaluations": "evaluations",
            "share": "share",
        },
    ),
    "overhead": (
        "The engine's own time, windows of 64 latent pixels",
        {
            "megapixels": "megapixels",
            "overlap": "overlap",
            "views_per_step": "views per step",
            "setup_s": "setup, s",
            "step_s": "step, s",
            "view_s": "per view, s",
            "ns_per_latent_pixel": "per latent pixel, ns",
            "share": "share of a phase",
        },
    ),
    "tiled": (
        "Decoding in tiles, the embedded model",
        {"scene": "scene", "views": "views wide", "largest": "largest difference, levels of 255", "beyond_two": "share of values more than 2 apart"},
    ),
    "embedded": ("The embedded model", VIEWS),
    "gpu": ("UNets on a GPU", {"unet": "UNet", "dtype": "type", **VIEWS, "panorama_view_s": "diffusers' MultiDiffusion, s per view"}),
}


def _notes(name: str, found: Mapping[str, Any]) -> str:
    """What belongs to a section and is no row of its table."""
    if name == "overhead":
        fits = "; ".join(f"overlap {overlap}: {fit['seconds']:.3f} (views alone {fit['views']:.3f})" for overlap, fit in found["exponents"].items())
        return (
            f"The share is against the least time of an SD 1.5-sized UNet, {found['unet_view_s']:.3g} s per view with guidance: "
            f"2 x {found['unet_flops'] / 1e12:.3g} TFLOP at {found['matmul_flops_per_s'] / 1e9:.3g} GFLOP/s, this processor's matrix product. "
            f"Exponent of time per step against pixels: {fits}. Operators per view: {found['operators_per_view']:.1f}."
        )
    if name == "tiled":
        sizes = "; ".join(f"{row['pixels']} px: {row['beyond_mib']:g} MiB beside a picture of {row['picture_mib']:g}" for row in found["memory"])
        return f"Time over that of decoding {found['pixels']} px at once: {found['ratio']:.3f}. Peak memory beyond the picture: {sizes or 'not measured'}."
    return str(found.get("reason", ""))


def plot(results: Mapping[str, Any]) -> str:
    """Seconds per step against megapixels as SVG, with a linear cost beside them."""
    rows = results["sections"]["overhead"]["rows"]
    lines = [
        Line(f"overlap {overlap:g}", [(row["megapixels"], row["step_s"], None, None) for row in rows if row["overlap"] == overlap], joined=True)
        for overlap in dict.fromkeys(row["overlap"] for row in rows)
    ]
    first, *_, last = sorted({row["megapixels"] for row in rows})
    least = min(row["step_s"] / row["megapixels"] for row in rows)
    lines.append(Line("linear", [(size, least * size, None, None) for size in (first, last)], joined=True))
    return draw("The engine's own time per step", "megapixels", "seconds", lines, log="xy")


def page(results: Mapping[str, Any], picture: str = "speed.svg") -> str:
    """The whole page in Markdown; `picture` is the plot's file beside it."""
    parts = [
        "# Speed",
        "Made by `python -m bench.speed`; do not edit.",
        f"![seconds per step]({picture})",
        ", ".join(f"{key} {value}" for key, value in results["machine"].items()),
    ]
    for name, found in results["sections"].items():
        if name == "memory":
            sizes = f"{found['pixels'][0]} x {found['pixels'][1]} pixels, a latent being {found['latent_mib']:g} MiB"
            kinds = [[kind, found[f"{kind}_mib"], found[f"{kind}_latents"]] for kind in ("allocated", "resident") if f"{kind}_mib" in found]
            parts += [f"## Peak memory beyond model and output, {sizes}", table(("account", "MiB", "latents"), kinds)]
        else:
            title, columns = COLUMNS[name]
            parts += [f"## {title}", *([_of(found["rows"], columns)] if found["rows"] else []), _notes(name, found)]
    parts += [
        "## Bars",
        table(("bar", "measured", "at most", "met"), [[b.name, float(b.value), float(b.most), "yes" if b.met else "NO"] for b in bars(results["sections"])]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
