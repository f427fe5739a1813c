"""The bars that the presets have to clear, and their check against the results: `python -m bench.quality.bars docs/bench/quality.json`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apt_ext.options import preset_named
from bench.quality.pictures import SETS
from bench.quality.results import Row, find, read
from bench.quality.statistics import shared, summary
from bench.speed.plan import PUBLISHED, count

__all__ = ["EDGES", "KERNEL", "LOSS", "MISSING", "SHARES", "Check", "check_bars", "misses"]

EDGES, LOSS, KERNEL, MISSING, AGREEMENT = 0.8, 2.0, 0.6, 0.4, 30.0
SHARES = {"Fast": 0.05, "Balanced": 0.10, "Quality": 0.22}
"""Of DemoFusion's window evaluations from 1024 to 4096 px, on SDXL's native size."""
DETAILED = ("Balanced", "Quality")
SCALES = (2, 4)


class Check(NamedTuple):
    """A bar, whether it is met, and what was found."""

    bar: str
    met: bool
    found: str


def misses(found: Mapping[str, Any], kind: str, detailed: bool) -> list[Check]:
    """The bars on a row's `summary`, met or not: fidelity for all, detail for the presets that promise it."""
    checks = [
        Check(f"edges in place at least {EDGES}", found["edges"] >= EDGES, f"{found['edges']:.3f}"),
        Check(f"loses at most {LOSS:g} dB of PSNR against Lanczos", found["loss"] <= LOSS, f"{found['loss']:.2f}"),
    ]
    if detailed:
        checks += [
            Check(f"kernel distance at most {KERNEL} of Lanczos'", found["kernel"] <= KERNEL, f"{found['kernel']:.2f}"),
            Check(f"missing power above Nyquist less than {MISSING} of Lanczos'", found["missing"] < MISSING, f"{found['missing']:.2f}"),
        ]
    if kind == "photographs":
        checks.append(Check(f"agrees with the input by at least {AGREEMENT:g} dB", found["agreement"] >= AGREEMENT, f"{found['agreement']:.1f}"))
    return checks


def _cost(preset: str) -> Check:
    found = count(preset_named(preset))["evaluations"]
    bar = f"{preset}: at most {SHARES[preset]:.0%} of DemoFusion's {PUBLISHED} window evaluations from 1024 to 4096 px"
    return Check(bar, found <= SHARES[preset] * PUBLISHED, f"{found}, {found / PUBLISHED:.1%}")


def _quality(preset: str, scale: int, kind: str, rows: Sequence[Row], model: str, seed: int) -> Iterator[Check]:
    where = f"{preset}, {scale}x, {kind}"
    row = find(rows, group="presets", name=preset, scale=scale, kind=kind, model=model, seed=seed)
    lanczos = find(rows, name="Lanczos", scale=scale, kind=kind)
    if row is None or lanczos is None or shared(row) < shared(lanczos):
        yield Check(f"{where}: every bar", False, f"measured on {shared(row) if row else 0} pictures of {shared(lanczos) if lanczos else 'none'}")
        return
    for check in misses(summary(row, lanczos), kind, preset in DETAILED):
        yield check._replace(bar=f"{where}: {check.bar}")


def check_bars(results: Mapping[str, Any]) -> list[Check]:
    """Every bar, for the first model and seed of the results; what is not measured on all pictures is missed."""
    rows, model = results["rows"], results["models"][0]["sha256"]
    seed = rows[0]["seed"] if rows else 1
    checks = [_cost(preset) for preset in SHARES]
    return checks + [check for scale in SCALES for kind in SETS for preset in SHARES for check in _quality(preset, scale, kind, rows, model, seed)]


def main(argv: Sequence[str]) -> int:
    """Check the bars of a results file and print those that are missed."""
    missed = [check for check in check_bars(read(Path(argv[0]))) if not check.met]
    for check in missed:
        print(f"MISSED {check.bar}: {check.found}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
