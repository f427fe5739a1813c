"""Peak memory of a phase with a stand-in for the model: what the engine needs beyond the model itself.

Run as a module it measures one size in a process of its own, since a process's peak cannot be taken back, and prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from apt_ext.demo.job import peak_memory_mib
from bench.speed.overhead import run_phase

__all__ = ["MIB", "allocated_peak", "memory", "resident_peak"]

MIB = 2**20
STATM = Path("/proc/self/statm")


def allocated_peak(work: Callable[[], object]) -> float:
    """Largest sum of tensors in MiB that were made and alive while some work was done on the CPU, from torch's own account of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    results = run.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    live = peak = 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak / MIB


def resident_peak(side: int, overlap: float) -> float:
    """MiB by which this process's peak resident memory exceeds what it held before a phase, after a small one has loaded everything.

    Call it in a fresh process, on Linux: elsewhere a process cannot cheaply tell what it holds now.
    """
    run_phase(128, overlap, 2, torch.device("cpu"))
    before = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    run_phase(side, overlap, 2, torch.device("cpu"))
    return (peak_memory_mib(torch.device("cpu")) or 0.0) - before


def memory(side: int, overlap: float = 0.5) -> dict[str, Any]:
    """Peaks in MiB and in latents (one: 4 x side x side float32), all of the phase's own tensors counted, its output (one latent) taken off.

    "allocated" is torch's account and exact; "resident" the growth of a process's peak, with what libraries take besides.
    """
    latent = 4 * 4 * side**2 / MIB
    command = [sys.executable, "-m", "bench.speed.memory", str(side), str(overlap)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout)
    extra = {name: value - latent for name, value in found.items()}
    return {
        "pixels": [side * 8, side * 8],
        "overlap": overlap,
        "latent_mib": latent,
        **{f"{name}_mib": round(value, 2) for name, value in extra.items()},
        **{f"{name}_latents": round(value / latent, 2) for name, value in extra.items()},
    }


if __name__ == "__main__":
    size, share = int(sys.argv[1]), float(sys.argv[2])
    resident = {"resident": resident_peak(size, share)} if STATM.exists() else {}
    print(json.dumps({**resident, "allocated": allocated_peak(lambda: run_phase(size, share, 2, torch.device("cpu")))}))
