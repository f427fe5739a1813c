"""What a run costs: network evaluations, seconds and memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import wait

__all__ = ["Costs", "counted"]

STATM = Path("/proc/self/statm")
MIB = 2**20


@dataclass
class Costs:
    """`evaluations`: rows that went through the network, those of guidance counted too. `seconds`. `memory`: MiB at the highest, the weights included."""

    evaluations: int = 0
    seconds: float = 0.0
    memory: float = 0.0


def _resident() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@contextlib.contextmanager
def counted(network: Any, device: torch.device) -> Iterator[Costs]:
    """Within the block a network's calls are counted. Memory is a GPU's allocations, or, on Linux, what this process holds, looked at all the time."""
    costs, done = Costs(), threading.Event()

    def count(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        costs.evaluations += int((given[0] if given else named["sample"]).shape[0])

    def watch() -> None:
        while not done.wait(0.02):
            costs.memory = max(costs.memory, _resident())

    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    watching = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATM.exists():
        watching.start()
    wait(device)
    started = time.perf_counter()
    try:
        yield costs
    finally:
        wait(device)
        costs.seconds = time.perf_counter() - started
        done.set()
        hook.remove()
        if watching.ident is not None:
            watching.join()
        if device.type == "cuda":
            costs.memory = torch.cuda.max_memory_allocated(device) / MIB
