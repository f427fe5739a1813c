"""The results as tables."""

from __future__ import annotations

from typing import Any

from bench.tables import table

__all__ = ["page"]

NONE, ALL = "nothing (all as theirs)", "everything (the library's call)"


def _row(name: str, found: dict[str, Any]) -> list[Any]:
    steps = [step for phase in found["steps"] for step in phase]
    own = {"none": NONE, "all": ALL}.get(name, name)
    return [own, *(f"{value:.1e}" for value in (found["base"], steps[0], max(steps), found["latent"]))]


def _of(results: dict[str, Any]) -> str:
    departures = results["departures"]
    width, height = results["size"]
    costs = [[name, cost["evaluations"], f"{cost['seconds']:.0f}", f"{cost['memory']:.0f}"] for name, cost in results["costs"].items()]
    pictures = {
        "all as theirs, the decoder too": departures["none"]["picture"],
        "their last latent, by our decoder": results["decoder"],
        "the library's call": departures["all"]["picture"],
        "the last row's latent and the library's picture": departures["all"]["from the library's picture"],
    }
    parts = [
        f"{width} x {height} pixels, {results['steps']} steps, guidance {results['guidance']:g}; the last latent's deviation is {results['deviation']:.2g}.",
        table(("run", "network evaluations", "seconds", "MiB at the highest"), costs),
        "Largest difference of latents from theirs, by what is done our way while the rest is theirs:",
        table(("our way", "base", "first step", "worst step", "last latent"), [_row(name, one) for name, one in departures.items()]),
        "Difference of pictures from theirs, of the last row from each other, in levels of 255:",
        table(("pictures", "mean", "most"), [[name, f"{one['mean']:.3g}", one["most"]] for name, one in pictures.items()]),
    ]
    if "from real pictures" in results:
        rows = [[name, one["whole"], one["patches"]] for name, one in results["from real pictures"].items()]
        parts += ["Kernel distance from the real pictures, 0 for none:", table(("pictures of", "whole", "patches"), rows)]
    return "\n\n".join(parts)


def page(results: dict[str, Any]) -> str:
    """Markdown: a section for each published pipeline."""
    machine, model = results["machine"], results["model"]
    head = f"{machine['device']} ({machine['processor']}), torch {machine['torch']}, diffusers {model['diffusers']}, {model['dtype']}."
    return "\n\n".join([head, *(f"## {name}\n\n{_of(one)}" for name, one in results["pipelines"].items())]) + "\n"
