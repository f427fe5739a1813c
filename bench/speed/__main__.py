"""How fast the engine is: `python -m bench.speed` measures, writes JSON and a page for the docs, and fails where a bar is missed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from apt_ext.demo.model import choose_device
from apt_ext.demo.pictures import write_whole
from bench.machine import facts
from bench.speed.bars import bars
from bench.speed.embedded import embedded
from bench.speed.gpu import gpu
from bench.speed.memory import memory
from bench.speed.overhead import overhead
from bench.speed.page import page, plot
from bench.speed.plan import plan
from bench.speed.tiled import tiled
from bench.speed.unets import SD_15, SD_15_FLOPS, unet_flops, without_diffusers

__all__ = ["Settings", "main", "measure"]


@dataclass(frozen=True)
class Settings:
    """Sizes of the runs: latent sides, steps, repeats and window batches."""

    sides: tuple[int, ...] = (128, 256, 512, 1024)
    overlaps: tuple[float, ...] = (0.5, 0.125)
    steps: int = 4
    repeats: int = 3
    memory_side: int = 1024
    tiled_side: int = 272
    tiled_repeats: int = 5
    tiled_memory_sides: tuple[int, ...] = (512, 1024)
    embedded_side: int = 48
    embedded_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    embedded_repeats: int = 5
    gpu_batches: tuple[int, ...] = (1, 2, 4, 8, 16)


def sections(settings: Settings, device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """The measurements by name, in the order that they run in."""
    cpu, s = torch.device("cpu"), settings
    return {
        "plan": plan,
        "overhead": lambda: overhead(
            cpu, SD_15_FLOPS if without_diffusers() else unet_flops(SD_15), sides=s.sides, overlaps=s.overlaps, steps=s.steps, repeats=s.repeats
        ),
        "memory": lambda: memory(s.memory_side),
        "tiled": lambda: tiled(device, side=s.tiled_side, repeats=s.tiled_repeats, memory_sides=s.tiled_memory_sides),
        "embedded": lambda: embedded(device, side=s.embedded_side, batches=s.embedded_batches, repeats=s.embedded_repeats),
        "gpu": lambda: gpu(device, batches=s.gpu_batches, repeats=s.repeats),
    }


def _kept(out: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The sections of an earlier run with the same machine, versions and settings; none of any other's."""
    try:
        earlier = json.loads(out.read_text())
    except (OSError, ValueError):
        return {}
    same = isinstance(earlier, dict) and all(earlier.get(key) == value for key, value in head.items())
    return dict(earlier.get("sections", {})) if same else {}


def measure(out: Path, settings: Settings, device: torch.device, fresh: bool = False) -> dict[str, Any]:
    """Run what is not in `out` yet; the file is written after every section, so that an interrupted run goes on where it was."""
    head = json.loads(json.dumps({"machine": facts(device), "settings": dataclasses.asdict(settings)}))  # as it will be read back
    done = {} if fresh else _kept(out, head)
    out.parent.mkdir(parents=True, exist_ok=True)
    jobs = sections(settings, device)
    results: dict[str, Any] = {**head, "sections": done, "bars": []}
    for name in tqdm([name for name in jobs if name not in done], desc="speed", unit="section"):
        found = json.loads(json.dumps(jobs[name]()))
        results["sections"] = done = {key: {**done, name: found}[key] for key in jobs if key in done or key == name}
        results["bars"] = [{**bar._asdict(), "met": bar.met} for bar in bars(done)]
        write_whole(out, (json.dumps(results, indent=1) + "\n").encode())
    return results


def main(arguments: list[str] | None = None, settings: Settings | None = None) -> int:
    """Measure, write `--out` with a page and a plot beside it, print the bars.

    Returns:
        0, or 1 where a bar is missed.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/speed.json"), help="JSON with the results; sections that it has are kept")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    given = parser.parse_args(arguments)
    try:
        device = choose_device(given.device)
    except ValueError as error:
        parser.error(str(error))
    results = measure(given.out, settings or Settings(), device, given.fresh)
    picture = given.out.with_suffix(".svg")
    picture.write_text(plot(results))
    given.out.with_suffix(".md").write_text(page(results, picture.name))
    found = bars(results["sections"])
    for bar in found:
        print(f"{'met   ' if bar.met else 'MISSED'} {bar.name}: {bar.value:.4g}, at most {bar.most:g}")
    if results["sections"]["gpu"]["reason"]:
        print(f"GPU {results['sections']['gpu']['reason']}")
    return 0 if all(bar.met for bar in found) else 1


if __name__ == "__main__":
    sys.exit(main())
