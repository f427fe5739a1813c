"""The engine's own time: whole phases with a stand-in for the model, so that all the time but the stand-in's is the engine's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import make_plan
from apt_ext.core.upscale import sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options
from bench.machine import matmul_flops, wait
from bench.speed.stand_in import StandIn, stable_diffusion

__all__ = ["WINDOW", "exponent", "host_reads", "overhead", "run_phase"]

WINDOW = 64
SCALAR_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
"""Operators that make the host wait for a device: reading a number out of a tensor, or a shape that depends on values."""


def run_phase(side: int, overlap: float, steps: int, device: torch.device, window: int = WINDOW) -> dict[str, Any]:
    """One phase from a base of one window to `side` x `side` latents, (1, 4, side, side), with Euler.

    Returns:
        Steps, views, model calls, and seconds of the engine: `setup` before the first model call (enlarging, matching, noise), `loop` after it.
    """
    facts, sigmas = stable_diffusion(window)
    # APT over DemoFusion in one phase from the middle of a schedule, so that both paths run at every step.
    options, model = Options(phases="direct", overlap=overlap, tolerance=0.0), StandIn()
    levels = shortcut_sigmas(make_sigmas("normal", math.ceil(steps / 0.6), sigmas), 0.6).to(device)
    plan = make_plan((window, window), (side, side), options, facts, levels, [1] * (len(levels) - 1))
    generator = torch.Generator().manual_seed(0)
    base = torch.randn((1, 4, window, window), generator=generator).to(device)
    views: list[int] = []
    sample = sample_with(
        ViewCalls(model, options.window_batch, on_views=views.append),
        lambda phase: make_sampler("euler", [0]),
        lambda phase, shape: torch.randn(shape, generator=generator),
        model_calls=plan.calls,
        extra={"context": torch.zeros((1, 77, 768), device=device)},
    )
    wait(device)
    started = time.perf_counter()
    with torch.no_grad():
        out = upscale(base, base, plan, sample)
    wait(device)
    stopped = time.perf_counter()
    assert bool(out.isfinite().all())
    return {"steps": plan.steps, "views": sum(views), "calls": model.calls, "setup": model.first - started, "loop": stopped - model.first - model.seconds}


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run inside it, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Operator name -> how often it ran inside."""
    with _Count() as mode:
        yield mode.seen


def host_reads(side: int, overlap: float, steps: int) -> dict[str, Any]:
    """What a phase asks of a device, counted on the CPU: operators per view, and reads that would make the host wait, per step."""
    with counting() as seen:
        ran = run_phase(side, overlap, steps, torch.device("cpu"))
    reads = sum(seen.get(name, 0) for name in SCALAR_READS)
    return {"side": side, "views": ran["views"], "steps": ran["steps"], "reads": reads, "operators": sum(seen.values())}


def exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds ~ pixels^p, least squares over the logarithms; 1 is linear."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (pixels, seconds))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def overhead(
    device: torch.device, unet_flops: float, *, sides: Sequence[int], overlaps: Sequence[float], steps: int, repeats: int, window: int = WINDOW
) -> dict[str, Any]:
    """Seconds of the engine per step, per view and as a share of a phase, from 1 to 64 megapixels (a latent pixel is 8 x 8 pixels).

    The share is against the least time that an SD 1.5-sized UNet could take on this machine: its operations over the speed of a large matrix
    product measured in the same run. A real UNet is slower, so the true share is smaller. A phase has 18 steps, as with the default options.

    Args:
        unet_flops: operations of one view's forward pass, guidance not counted; guidance makes it two per view.
    """
    speed = matmul_flops(device)
    rows = []
    jobs = [(side, overlap) for overlap in overlaps for side in sides]
    for side, overlap in tqdm(jobs, desc="overhead", unit="size"):
        run_phase(side, overlap, 1, device, window)
        runs = [run_phase(side, overlap, steps, device, window) for _ in range(repeats)]
        best = min(runs, key=lambda run: run["loop"])
        step, setup, views = best["loop"] / best["steps"], min(run["setup"] for run in runs), best["views"] / best["steps"]
        unet = views * 2 * unet_flops / speed
        rows.append(
            {
                "megapixels": round((side * 8) ** 2 / 2**20, 3),
                "side": side,
                "overlap": overlap,
                "views_per_step": views,
                "setup_s": setup,
                "step_s": step,
                "view_s": step / views,
                "ns_per_latent_pixel": step / side**2 * 1e9,
                "share": (setup + 18 * step) / (setup + 18 * (step + unet)),
            }
        )
    fits = {
        str(overlap): {
            "seconds": exponent([row["side"] ** 2 for row in own], [row["step_s"] for row in own]),
            "views": exponent([row["side"] ** 2 for row in own], [row["views_per_step"] for row in own]),
            "last_pair": exponent([row["side"] ** 2 for row in own[-2:]], [row["step_s"] for row in own[-2:]]),
        }
        for overlap in overlaps
        if len(own := [row for row in rows if row["overlap"] == overlap]) > 1
    }
    small, large = host_reads(4 * window // 2, 0.5, 3), host_reads(8 * window // 2, 0.5, 3)
    return {
        "matmul_flops_per_s": speed,
        "unet_flops": unet_flops,
        "unet_view_s": 2 * unet_flops / speed,
        "steps_of_a_phase": 18,
        "rows": rows,
        "exponents": fits,
        "reads": [small, large],
        "operators_per_view": (large["operators"] - small["operators"]) / (large["views"] - small["views"]),
    }
