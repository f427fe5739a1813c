"""The embedded model inside the engine, against the same model called bare with equal batches in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from apt_ext.core.dilated import dilated_grid
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.paths import DilatedPath, LocalPath
from apt_ext.core.types import Denoiser
from apt_ext.core.views import ViewCalls, even_batches
from apt_ext.core.weights import PathWeights
from apt_ext.core.windows import draw_windows
from apt_ext.demo.model import load_model
from bench.machine import median_ratio, seconds

__all__ = ["bare_seconds", "compare", "embedded", "engine_seconds"]


def bare_seconds(
    denoiser: Denoiser, shape: tuple[int, ...], batches: Sequence[int], extra: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of the model alone over `batches` of views (C, h, w): the least that any engine needs for them. `extra`: one row each."""
    inputs = {n: (torch.randn((n, *shape), device=device, dtype=dtype), torch.ones(n, device=device)) for n in set(batches)}
    more = {n: {key: value.expand(n, *value.shape[1:]).contiguous() for key, value in extra.items()} for n in set(batches)}
    return seconds(lambda: [denoiser(*inputs[n], **more[n]) for n in batches], device)


def engine_seconds(fused: FusedDenoiser, x: Tensor, extra: dict[str, Tensor]) -> float:
    """Seconds of one call of the fused denoiser, one step of Euler's, on (1, C, H, W)."""
    return seconds(lambda: fused(x, torch.ones(1, device=x.device), **extra), x.device)


def compare(
    denoiser: Denoiser, x: Tensor, window: int, extra: dict[str, Tensor], window_batch: int, repeats: int, overlap: float = 0.5
) -> dict[str, float | int]:
    """Engine against bare model, timed in turn.

    Args:
        denoiser: guidance included. x: (1, C, H, W). `extra`: its other arguments, one row each.

    Returns:
        Views per step, the best seconds per view of both, and the middle of the paired ratios engine / bare.
    """
    size = (x.shape[-2], x.shape[-1])
    windows = draw_windows(0, size=size, window=(window, window), overlap=overlap)
    grid = dilated_grid(size, (size[0] // window, size[1] // window), multiple=8 if window >= 64 else 1)
    calls = ViewCalls(denoiser, window_batch)
    fused = FusedDenoiser(calls, LocalPath(lambda step: windows), DilatedPath(grid, blur=1.0), lambda sigma: PathWeights(0.5, 0.5, 0.5))
    batches = [part.stop - part.start for views in (len(windows), grid.views) for part in even_batches(views, window_batch)]
    shape = (x.shape[1], window, window)
    with torch.inference_mode():
        for n in sorted(set(batches)):
            bare_seconds(denoiser, shape, [n], extra, x.device, x.dtype)
        engine_seconds(fused, x, extra)
        runs = [(engine_seconds(fused, x, extra), bare_seconds(denoiser, shape, batches, extra, x.device, x.dtype)) for _ in range(repeats)]
    views = sum(batches)
    engine, bare = (min(run[k] for run in runs) / views for k in (0, 1))
    return {"window_batch": window_batch, "views": views, "engine_view_s": engine, "bare_view_s": bare, "ratio": median_ratio(runs)}


def embedded(device: torch.device, *, side: int, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds per window evaluation of the embedded model on `side` x `side` latents, for every window batch."""
    model = load_model(device=device)
    x = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(0)).to(device)
    style = {"style": torch.zeros(1, dtype=torch.long, device=device)}
    denoiser = model.denoiser(1.5)
    return {"side": side, "rows": [compare(denoiser, x, 16, style, n, repeats) for n in tqdm(batches, desc="embedded", unit="batch")]}
