"""The engine around UNets of SD 1.5's and SDXL's size on a GPU, against the bare UNet and against diffusers' MultiDiffusion pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from bench.machine import wait
from bench.speed.embedded import compare
from bench.speed.unets import SD_15, SDXL, Config, guided, make_unet, panorama, without_diffusers, words

__all__ = ["gpu", "measure_unet"]


def measure_unet(
    config: Config, device: torch.device, dtype: torch.dtype, side: int, batches: Sequence[int], repeats: int, pipeline: bool
) -> list[dict[str, Any]]:
    """One row per window batch: the engine's and the bare UNet's seconds per view, and the pipeline's where it can run this UNet.

    Args:
        side: of the latent. The pipeline runs on one and a half windows a side: its stride makes many views of little.
    """
    unet, given = make_unet(config, device, dtype), words(config, device, dtype)
    x = torch.randn((1, 4, side, side), device=device, dtype=dtype)
    run = panorama(unet, config) if pipeline else None
    small = x[..., : config.window * 3 // 2, : config.window * 3 // 2].contiguous()
    rows = []
    for n in tqdm(batches, desc=config.name, unit="batch"):
        row: dict[str, Any] = {"unet": config.name, "dtype": str(dtype).removeprefix("torch."), **compare(guided(unet), x, config.window, given, n, repeats)}
        if run is not None:
            with torch.inference_mode():
                run(small, n, 1)
                wait(device)
                started = time.perf_counter()
                views = run(small, n, 2)
                wait(device)
            row["panorama_view_s"] = (time.perf_counter() - started) / views
        rows.append(row)
    return rows


def gpu(device: torch.device, *, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Both UNets in bfloat16 on a picture of three windows a side, or the reason why not."""
    reason = "not measured: no CUDA device" if device.type != "cuda" else without_diffusers()
    if reason:
        return {"reason": reason, "rows": []}
    jobs = [(SD_15, True), (SDXL, False)]
    return {
        "reason": "",
        "panorama_note": "the pipeline has no place for SDXL's conditioning",
        "rows": [row for config, own in jobs for row in measure_unet(config, device, torch.bfloat16, 3 * config.window, batches, repeats, own)],
    }
