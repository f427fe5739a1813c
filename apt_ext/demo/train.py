"""Trains the embedded model from scratch: first the autoencoder, then the UNet on its latents.

    python -m apt_ext.demo.train --out build/model

Two CPU cores need about an hour and a half, a GPU minutes. Every step draws its data and noise from a generator seeded with
(seed, step), so a run that was cut off continues from its last checkpoint exactly as if it had not been.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from apt_ext.demo.autoencoder import FACTOR, Autoencoder
from apt_ext.demo.blocks import Module, channels_last
from apt_ext.demo.model import alphas_cumprod
from apt_ext.demo.photos import load_photos
from apt_ext.demo.unet import UNet
from apt_ext.demo.world import STYLES, make_scene, render

VIEW = 64  # pixels of a native picture
ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0)
CANVAS_EXTENT = 1.5
STYLE_NAMES = (*STYLES, "photo")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, besides the machine."""

    seed: int = 1
    scenes_per_style: int = 200
    photo_share: float = 0.22
    autoencoder_steps: int = 2000
    autoencoder_batch: int = 32
    autoencoder_rate: float = 1.5e-3
    latents: int = 48_000
    unet_steps: int = 3600
    unet_batch: int = 128
    unet_rate: float = 6e-4
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


def _rate(step: int, steps: int, peak: float) -> float:
    """A short warm-up, then a cosine down to a fiftieth."""
    return peak * min(1.0, (step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


def _train(name: str, model: Module, loss_of: Callable[[int], Tensor], steps: int, peak: float, out: Path, device: torch.device, seed: int) -> Module:
    """Runs `loss_of(step) -> scalar` for the given steps and returns the moving average of the model; resumes from `out/name.pt`."""
    channels_last(model, device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint, first = out / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if (state["seed"], state["steps"]) != (seed, steps):
            raise ValueError(f"{checkpoint} is of a run with seed {state['seed']} and {state['steps']} steps; use another --out for this one")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=10)
    shown = 0.0
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, steps, peak)
        torch.manual_seed((hash((name == "unet", step)) + 1_000_003 * (seed - 1)) % 2**31)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        _follow(average, model, min(0.999, (1 + step) / (10 + step)))
        shown = loss.item() if not shown else 0.98 * shown + 0.02 * loss.item()
        bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            partial = checkpoint.with_suffix(".tmp")
            torch.save(
                {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
                | {"seed": seed, "steps": steps},
                partial,
            )
            partial.replace(checkpoint)
    return average


def autoencoder_loss(model: Autoencoder, x: Tensor, rng: np.random.Generator) -> Tensor:
    """Reconstruction, unit latents, and equivariance to resizing in both directions.

    Equivariance is what patch fusion needs of an autoencoder: an enlarged latent has to decode to the enlarged picture
    (as Stable Diffusion's does), or every phase starts from a checkerboard.
    """
    z = model.encoder(x)
    mean, std = z.float().mean((0, 2, 3)), z.float().std((0, 2, 3))
    unit = mean.square().mean() + (std - 1).square().mean()
    y = model.decoder(z + 0.05 * torch.randn_like(z)).float()
    detail = F.l1_loss(y[..., 1:, :] - y[..., :-1, :], x[..., 1:, :] - x[..., :-1, :]) + F.l1_loss(y[..., 1:] - y[..., :-1], x[..., 1:] - x[..., :-1])
    reconstruction = F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x) + 0.3 * detail
    k = int(rng.choice((4, 6, 8, 10)))
    i, j = (int(v) for v in rng.integers(0, z.shape[-1] - k + 1, 2))
    patch = x[..., FACTOR * i : FACTOR * (i + k), FACTOR * j : FACTOR * (j + k)]
    enlarged = F.interpolate(z[..., i : i + k, j : j + k].float(), size=z.shape[-2:], mode="bicubic")
    bigger = F.l1_loss(model.decoder(enlarged).float(), F.interpolate(patch, size=x.shape[-2:], mode="bicubic"))
    shrunk = model.encoder(F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)).float()
    smaller = F.mse_loss(shrunk, F.interpolate(z.float(), scale_factor=0.5, mode="bicubic", antialias=True))
    return reconstruction + 0.5 * bigger + 0.05 * smaller + 0.02 * unit


def unet_loss(model: UNet, z: Tensor, style: Tensor, alphas: Tensor, dropout: float) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) z at uniform timesteps (Salimans and Ho, "Progressive Distillation", 2022)."""
    t = torch.randint(0, 1000, (len(z),), device=z.device)
    a = alphas[t][:, None, None, None]
    noise = torch.randn_like(z)
    style = torch.where(torch.rand(len(z), device=z.device) < dropout, torch.full_like(style, len(STYLE_NAMES)), style)
    v = model(a.sqrt() * z + (1 - a).sqrt() * noise, t, style)
    return F.mse_loss(v.float(), a.sqrt() * noise - (1 - a).sqrt() * z)


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
    torch.manual_seed(recipe.seed)
    pool = make_pool(recipe, args.workers)

    def half() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16)

    autoencoder = Autoencoder()

    def autoencoder_step(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, 1, step])
        x, _ = draw(pool, recipe.autoencoder_batch, recipe.photo_share, rng)
        with half():
            return autoencoder_loss(autoencoder, x.to(device, memory_format=torch.channels_last), rng)

    trained = _train("autoencoder", autoencoder, autoencoder_step, recipe.autoencoder_steps, recipe.autoencoder_rate, args.out, device, recipe.seed).eval()

    torch.manual_seed(recipe.seed)
    z = torch.empty(recipe.latents, 4, VIEW // FACTOR, VIEW // FACTOR)
    styles = torch.empty(recipe.latents, dtype=torch.long)
    with torch.no_grad(), half():
        for k, part in enumerate(tqdm(list(_batches(recipe.latents, 256)), desc="latents", mininterval=10)):
            x, styles[part] = draw(pool, part.stop - part.start, recipe.photo_share, np.random.default_rng([recipe.seed, 2, k]))
            z[part] = trained.encoder(x.to(device, memory_format=torch.channels_last)).float().cpu()
    shift, scale = z.mean((0, 2, 3)), z.std((0, 2, 3))
    z = ((z - shift[:, None, None]) / scale[:, None, None]).to(device)
    styles, alphas = styles.to(device), alphas_cumprod().to(device)

    unet = UNet(len(STYLE_NAMES))

    def unet_step(step: int) -> Tensor:
        pick = torch.from_numpy(np.random.default_rng([recipe.seed, 3, step]).integers(len(z), size=recipe.unet_batch)).to(device)
        with half():
            return unet_loss(unet, z[pick].contiguous(memory_format=torch.channels_last), styles[pick], alphas, recipe.style_dropout)

    average = _train("unet", unet, unet_step, recipe.unet_steps, recipe.unet_rate, args.out, device, recipe.seed)
    weights = {f"autoencoder.{k}": v for k, v in trained.state_dict().items()} | {f"unet.{k}": v for k, v in average.state_dict().items()}
    weights = {k: v.cpu().half().contiguous() for k, v in weights.items()} | {"latent_shift": shift, "latent_scale": scale}
    facts = {"styles": ",".join(STYLE_NAMES), "recipe": json.dumps(asdict(recipe)), "minutes_of_last_run": f"{(time.time() - started) / 60:.0f}"}
    save_file(weights, args.out / "leaves.safetensors", metadata=facts)
    print(f"{args.out / 'leaves.safetensors'}: {sum(v.numel() for v in weights.values()) * 2 / 2**20:.1f} MiB, {facts['minutes_of_last_run']} minutes")


if __name__ == "__main__":
    main()
