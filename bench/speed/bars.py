"""The bars that the speed benchmark can miss, as a function of its figures alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Bar", "bars"]

SHARES = {"Quality": 0.22, "Balanced": 0.10, "Fast": 0.05}
OVERHEAD, EXPONENT, MEMORY_MIB, COUNT = 0.03, 1.15, 1536.0, 0.01
TILED_TIME, TILED_LEVELS, TILED_GROWTH = 1.15, 2.0, 1.15
REFERENCE_SIDE = 512
"""Latent pixels a side at 4096 x 4096 pixels, where the overhead's bar stands."""


class Bar(NamedTuple):
    """One bar: what was measured and what it may be at most."""

    name: str
    value: float
    most: float

    @property
    def met(self) -> bool:
        """A figure that is no number meets nothing."""
        return self.value <= self.most


def _plan(found: Mapping[str, Any]) -> Iterator[Bar]:
    shares = {row["name"]: row["share"] for row in found["rows"]}
    yield Bar("DemoFusion's settings, counted by the engine: distance from the published number", abs(shares["DemoFusion"] - 1), COUNT)
    for name, most in SHARES.items():
        yield Bar(f"preset {name}: share of DemoFusion's window evaluations", shares.get(name, float("nan")), most)


def _overhead(found: Mapping[str, Any]) -> Iterator[Bar]:
    for row in found["rows"]:
        if row["side"] == REFERENCE_SIDE:
            yield Bar(f"engine's share of a phase at 4096 px on this processor, overlap {row['overlap']:g}", row["share"], OVERHEAD)
    for overlap, fit in found["exponents"].items():
        yield Bar(f"time per step against pixels, exponent, overlap {overlap}", fit["seconds"], EXPONENT)
    per_step = [round(reads["reads"] / reads["steps"], 6) for reads in found["reads"]]
    yield Bar("reads of a tensor's value by the host that grow with the number of windows, per step", per_step[1] - per_step[0], 0.0)


def _memory(found: Mapping[str, Any]) -> Iterator[Bar]:
    for kind in (kind for kind in ("allocated", "resident") if f"{kind}_mib" in found):
        yield Bar(f"peak memory beyond model and output at {found['pixels'][0]} px, {kind}, MiB", found[f"{kind}_mib"], MEMORY_MIB)


def _tiled(found: Mapping[str, Any]) -> Iterator[Bar]:
    yield Bar(f"decoding in tiles: its time over that at once, {found['pixels']} px", found["ratio"], TILED_TIME)
    for row in found["rows"]:
        yield Bar(f"decoding in tiles: largest difference, {row['scene']}, {row['views']:g} views wide, levels of 255", row["largest"], TILED_LEVELS)
    if found["memory"]:
        small, *_, large = found["memory"]
        growth = large["beyond_mib"] / small["beyond_mib"]
        yield Bar(f"decoding in tiles: memory beyond the picture, {large['pixels']} px over {small['pixels']} px", growth, TILED_GROWTH)


def _gpu(found: Mapping[str, Any]) -> Iterator[Bar]:
    for row in found["rows"]:
        yield Bar(f"engine's share on the GPU, {row['unet']}, window batch {row['window_batch']}", 1 - 1 / row["ratio"], OVERHEAD)


MAKERS = {"plan": _plan, "overhead": _overhead, "memory": _memory, "tiled": _tiled, "gpu": _gpu}


def bars(sections: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Every bar of the sections that are there."""
    return [bar for name, make in MAKERS.items() if name in sections for bar in make(sections[name])]
