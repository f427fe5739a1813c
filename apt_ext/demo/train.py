"""Trains the embedded model from scratch: first the autoencoder, then the UNet on its latents.

    python -m apt_ext.demo.train --out build/model

Two CPU cores need about 40 minutes, a GPU a few. Every step draws its data and noise from a generator seeded with
(seed, step), so a run that was cut off continues from its last checkpoint exactly as if it had not been.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from apt_ext.demo.autoencoder import FACTOR, LATENT_CHANNELS, Autoencoder
from apt_ext.demo.blocks import Module, channels_last
from apt_ext.demo.model import alphas_cumprod
from apt_ext.demo.muon import Muon, is_hidden
from apt_ext.demo.photos import load_photos
from apt_ext.demo.unet import UNet
from apt_ext.demo.world import STYLES, make_scene, render

VIEW = 64  # pixels of a native picture
ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0)
CANVAS_EXTENT = 1.5
STYLE_NAMES = (*STYLES, "photo")
LATENT_NOISE = 0.2  # on the latents, of about unit variance, while the autoencoder trains
PARTS = 2  # of a batch, computed side by side on a CPU: two threads with half a batch each outrun one batch on two threads


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, besides the machine."""

    seed: int = 1
    scenes_per_style: int = 150
    photo_share: float = 0.22
    autoencoder_steps: int = 1200
    autoencoder_batch: int = 32
    latents: int = 48_000
    unet_steps: int = 3200
    unet_batch: int = 64
    matrix_rate: float = 0.02
    other_rate: float = 1.5e-3
    style_dropout: float = 0.15


Pool = list[list[list[NDArray[np.uint8]]]]  # [style][zoom][picture] -> (rows, columns, 3)


def _pyramid(picture: NDArray[np.uint8], pixels_per_view: float) -> list[NDArray[np.uint8]]:
    """One picture at every zoom: `pixels_per_view` of it shown as 64, 96, 128, 192 and 256 pixels."""
    image = Image.fromarray(picture)
    sizes = [tuple(max(VIEW, round(side * VIEW * zoom / pixels_per_view)) for side in image.size) for zoom in ZOOMS]
    return [np.asarray(image.resize((w, h), Image.Resampling.BOX, reducing_gap=None)) for w, h in sizes]


def _scene_pyramid(job: tuple[str, int]) -> list[NDArray[np.uint8]]:
    scene = make_scene(*job, extent=CANVAS_EXTENT)
    full = round(VIEW * ZOOMS[-1])
    return _pyramid(render(scene, round(CANVAS_EXTENT * full)), full)


def make_pool(recipe: Recipe, workers: int) -> Pool:
    """Render the training scenes and shrink the photographs."""
    jobs = [(style, recipe.seed * 1_000_000 + i) for style in STYLES for i in range(recipe.scenes_per_style)]
    with ProcessPoolExecutor(workers) as processes:
        done = list(tqdm(processes.map(_scene_pyramid, jobs, chunksize=8), total=len(jobs), desc="scenes"))
    n = recipe.scenes_per_style
    pool = [[list(level) for level in zip(*done[k * n : (k + 1) * n], strict=True)] for k in range(len(STYLES))]
    photos = [_pyramid(photo, min(photo.shape[:2]) / 1.25) for photo in load_photos()] if recipe.photo_share else []
    return [*pool, [list(level) for level in zip(*photos, strict=True)]]


def draw(pool: Pool, n: int, photo_share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """n random views: (n, 3, 64, 64) RGB in -1..1, (n,) style indices. Half of them show a whole view, half a zoom into one."""
    views, styles = np.empty((n, VIEW, VIEW, 3), np.uint8), np.empty(n, np.int64)
    for k in range(n):
        photo = rng.random() < photo_share
        style = len(STYLES) if photo else int(rng.integers(len(STYLES)))
        level = pool[style][0 if rng.random() < 0.5 else int(rng.integers(1, len(ZOOMS)))]
        picture = level[int(rng.integers(len(level)))]
        y, x = (int(rng.integers(side - VIEW + 1)) for side in picture.shape[:2])
        view = picture[y : y + VIEW, x : x + VIEW]
        if rng.random() < 0.5:
            view = view[:, ::-1]
        views[k] = view if photo else np.rot90(view, int(rng.integers(4)))
        styles[k] = style
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(styles)


def cosine(step: int, steps: int) -> float:
    """Share of the peak rate: a short warm-up, then a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def plateau(step: int, steps: int) -> float:
    """Share of the peak rate: a short warm-up, the peak, and a straight way down over the last 40 %.

    As good as a cosine (Hagele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024), and the
    number of steps need not be decided before the descent.
    """
    return min(1.0, (step + 1) / 100, 0.02 + (steps - step) / (0.4 * steps))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


def _threads(device: torch.device) -> ThreadPoolExecutor:
    """One thread for each part of a batch, with its share of the processor's cores."""
    if device.type != "cpu":
        return ThreadPoolExecutor(1)
    share = max(1, (os.cpu_count() or 1) // PARTS)
    torch.set_num_threads(share)
    return ThreadPoolExecutor(PARTS, initializer=torch.set_num_threads, initargs=(share,))


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it; a processor without it only imitates it, ten times slower than float32."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def _save(state: dict[str, Any], path: Path) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.replace(path)


def _train(
    name: str,
    model: Module,
    loss_of: Callable[[int, int], Tensor],
    rate: Callable[[int, int], float],
    steps: int,
    recipe: Recipe,
    out: Path,
    device: torch.device,
) -> Module:
    """Follows the gradient of `loss_of(step, part) -> scalar`, averaged over the parts, and returns the model's moving average.

    Matrices between hidden layers are Muon's, everything else is AdamW's. Resumes from `out/name.pt`.
    """
    channels_last(model, device)
    average = copy.deepcopy(model).requires_grad_(False)
    parameters = list(model.parameters())
    threads = _threads(device)
    optimisers = (
        Muon([p for p in parameters if is_hidden(p)], recipe.matrix_rate, run=threads),
        torch.optim.AdamW([p for p in parameters if not is_hidden(p)], recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.01),
    )
    peaks = (recipe.matrix_rate, recipe.other_rate)
    checkpoint, first = out / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if (state["seed"], state["steps"]) != (recipe.seed, steps):
            raise ValueError(f"{checkpoint} is of a run with seed {state['seed']} and {state['steps']} steps; use another --out for this one")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=10)
    shown = 0.0
    for step in bar:

        def part(number: int, step: int = step) -> tuple[float, tuple[Tensor, ...]]:
            loss = loss_of(step, number)
            return loss.item(), torch.autograd.grad(loss, parameters)

        losses, gradients = zip(*threads.map(part, range(PARTS)), strict=True)
        for parameter, *shares in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(shares).mean(0)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimiser.step()
        _follow(average, model, min(0.999, (1 + step) / (10 + step)))
        loss = sum(losses) / PARTS
        shown = loss if not shown else 0.98 * shown + 0.02 * loss
        bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            parts = {"model": model.state_dict(), "average": average.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
            _save(parts | {"step": step + 1, "seed": recipe.seed, "steps": steps}, checkpoint)
    threads.shutdown()
    return average


def autoencoder_loss(model: Autoencoder, x: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Reconstruction, unit latents, and equivariance to resizing in both directions.

    Equivariance is what patch fusion needs of an autoencoder: an enlarged latent has to decode to the enlarged picture
    (as Stable Diffusion's does), or every phase starts from a checkerboard. It is asked of half the pictures, which is enough.
    The noise on the latents keeps what the decoder needs well above the errors that a diffusion model makes.
    """
    z = model.encoder(x)
    mean, std = z.float().mean((0, 2, 3)), z.float().std((0, 2, 3))
    unit = mean.square().mean() + (std - 1).square().mean()
    y = model.decoder(z + LATENT_NOISE * torch.randn(z.shape, generator=noise, device=z.device)).float()
    detail = F.l1_loss(y[..., 1:, :] - y[..., :-1, :], x[..., 1:, :] - x[..., :-1, :]) + F.l1_loss(y[..., 1:] - y[..., :-1], x[..., 1:] - x[..., :-1])
    reconstruction = F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x) + 0.3 * detail
    half = (len(x) + 1) // 2
    x, z = x[:half], z[:half]
    k = int(rng.choice((4, 6, 8, 10)))
    i, j = (int(v) for v in rng.integers(0, z.shape[-1] - k + 1, 2))
    patch = x[..., FACTOR * i : FACTOR * (i + k), FACTOR * j : FACTOR * (j + k)]
    enlarged = F.interpolate(z[..., i : i + k, j : j + k].float(), size=z.shape[-2:], mode="bicubic")
    bigger = F.l1_loss(model.decoder(enlarged).float(), F.interpolate(patch, size=x.shape[-2:], mode="bicubic"))
    shrunk = model.encoder(F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)).float()
    smaller = F.mse_loss(shrunk, F.interpolate(z.float(), scale_factor=0.5, mode="bicubic", antialias=True))
    return reconstruction + 0.5 * bigger + 0.05 * smaller + 0.02 * unit


def unet_loss(model: UNet, z: Tensor, style: Tensor, alphas: Tensor, dropout: float, noise: torch.Generator) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) z (Salimans and Ho, "Progressive Distillation", 2022).

    The timesteps of a batch are spread evenly from a random first one (Kingma et al., "Variational Diffusion Models", 2021).
    """
    n, device = len(z), z.device
    t = ((torch.arange(n, device=device) + torch.rand((), generator=noise, device=device)) * (1000 / n)).long().clamp(max=999)
    a = alphas[t][:, None, None, None]
    e = torch.randn(z.shape, generator=noise, device=device)
    style = torch.where(torch.rand(n, generator=noise, device=device) < dropout, torch.full_like(style, len(STYLE_NAMES)), style)
    v = model((a.sqrt() * z + (1 - a).sqrt() * e).contiguous(memory_format=torch.channels_last), t, style)
    return F.mse_loss(v.float(), a.sqrt() * e - (1 - a).sqrt() * z)


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(n, k + size)) for k in range(0, n, size))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m apt_ext.demo.train", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished leaves.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that render scenes")
    defaults = Recipe()
    for field, value in asdict(defaults).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    recipe = Recipe(**{field: getattr(args, field) for field in asdict(defaults)})
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    file = args.out / "latents.pt"
    pool = [] if file.exists() else make_pool(recipe, args.workers)

    def generators(*numbers: int) -> tuple[np.random.Generator, torch.Generator]:
        rng = np.random.default_rng([recipe.seed, *numbers])
        return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))

    torch.manual_seed(recipe.seed)
    autoencoder = Autoencoder()

    def autoencoder_part(step: int, part: int) -> Tensor:
        rng, noise = generators(1, step, part)
        x, _ = draw(pool, recipe.autoencoder_batch // PARTS, recipe.photo_share, rng)
        with _autocast(device):
            return autoencoder_loss(autoencoder, x.to(device, memory_format=torch.channels_last), rng, noise)

    trained = _train("autoencoder", autoencoder, autoencoder_part, cosine, recipe.autoencoder_steps, recipe, args.out, device).eval()

    if not file.exists():
        z = torch.empty(recipe.latents, LATENT_CHANNELS, VIEW // FACTOR, VIEW // FACTOR)
        styles = torch.empty(recipe.latents, dtype=torch.long)
        with torch.no_grad(), _autocast(device):
            for k, rows in enumerate(tqdm(list(_batches(recipe.latents, 256)), desc="latents", mininterval=10)):
                x, styles[rows] = draw(pool, rows.stop - rows.start, recipe.photo_share, np.random.default_rng([recipe.seed, 2, k]))
                z[rows] = trained.encoder(x.to(device, memory_format=torch.channels_last)).float().cpu()
        _save({"z": z, "styles": styles}, file)
    kept = torch.load(file, weights_only=True)
    z, styles, alphas = kept["z"], kept["styles"].to(device), alphas_cumprod().to(device)
    shift, scale = z.mean((0, 2, 3)), z.std((0, 2, 3))
    z = ((z - shift[:, None, None]) / scale[:, None, None]).to(device)

    torch.manual_seed(recipe.seed)
    unet = UNet(len(STYLE_NAMES))

    def unet_part(step: int, part: int) -> Tensor:
        rng, noise = generators(3, step, part)
        pick = torch.from_numpy(rng.integers(len(z), size=recipe.unet_batch // PARTS)).to(device)
        with _autocast(device):
            return unet_loss(unet, z[pick], styles[pick], alphas, recipe.style_dropout, noise)

    average = _train("unet", unet, unet_part, plateau, recipe.unet_steps, recipe, args.out, device)
    weights = {f"autoencoder.{k}": v for k, v in trained.state_dict().items()} | {f"unet.{k}": v for k, v in average.state_dict().items()}
    weights = {k: v.cpu().half().contiguous() for k, v in weights.items()} | {"latent_shift": shift, "latent_scale": scale}
    facts = {"styles": ",".join(STYLE_NAMES), "recipe": json.dumps(asdict(recipe)), "minutes_of_last_run": f"{(time.time() - started) / 60:.0f}"}
    save_file(weights, args.out / "leaves.safetensors", metadata=facts)
    print(f"{args.out / 'leaves.safetensors'}: {sum(v.numel() for v in weights.values()) * 2 / 2**20:.1f} MiB, {facts['minutes_of_last_run']} minutes")


if __name__ == "__main__":
    main()
