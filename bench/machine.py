"""What a figure was measured on and with, and how fast that machine multiplies."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import apt_ext

__all__ = ["facts", "matmul_flops", "median_ratio", "wait"]

PACKAGES = ("numpy", "einops", "k-diffusion", "diffusers", "transformers")


def _processor() -> str:
    """The processor's name: Linux tells it in a file, other systems by themselves."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _code() -> str:
    """Digest of the engine's source, so that figures of other code are not taken for this code's."""
    root = Path(apt_ext.__file__).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*sorted((root / "core").rglob("*.py")), root / "options.py"])).hexdigest()[:12]


def facts(device: torch.device) -> dict[str, Any]:
    """Machine and versions, as data that two runs can be compared by."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **{name: _version(name) for name in PACKAGES},
        "apt": apt_ext.__version__,
        "engine": _code(),
    }


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes on a device, from idle to idle."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """The middle of a / b over runs that were timed in turn, which a busy moment of the machine does not move."""
    ratios = sorted(a / b for a, b in pairs)
    return ratios[len(ratios) // 2]


def matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32, side: int = 2048, repeats: int = 5) -> float:
    """Floating point operations per second of this machine's best of some square matrix products, which nothing in a network exceeds."""
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up; being the slowest it does not count
        best = min(best, seconds(lambda: a @ b, device))
    return 2 * side**3 / best
