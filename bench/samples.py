"""How close the embedded model's own pictures are to its world's: `python -m bench.samples`.

Made pictures are compared with views of scenes that no training saw, drawn as training draws its own: half of them whole views,
half zooms. Two measures: the kernel distance of the quality benchmark, and how often a small network that has learnt to tell made
from real is right about pictures that it has not seen (50 % is perfect). Each stands beside what it gives where there is nothing to
find, real against other real pictures, and, as the decoder leaves traces of its own, against real ones that went through it.
A third measure is of the autoencoder alone: how well it gives back such views, and photographs that no training saw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from apt_ext.demo.dataset import VIEW, ZOOMS, photo_pyramids
from apt_ext.demo.model import NATIVE, WEIGHTS, LeavesModel, load_model
from apt_ext.demo.photos import held_out_half, load_photos
from apt_ext.demo.pictures import write_whole
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.demo.world import STYLES, make_scene, render
from bench.quality.kernel import features, kernel_parts, whitening

__all__ = ["accuracy", "distance", "made_pictures", "main", "measure", "photo_pictures", "real_pictures", "reconstruction", "whole_photographs"]

FIRST_SCENE = 700_000  # training's scenes are beyond a million, the quality benchmark's elsewhere
PHOTOS = Path(__file__).parent / "photos"
RESAMPLES = 400
BATCH = 32


def real_pictures(count: int, first: int) -> Tensor:
    """(count, 3, 64, 64) in -1..1: a view of a scene of its own each, the styles in turn.

    Args:
        first: number of the first picture; the same number is always the same view.
    """

    def one(number: int) -> np.ndarray[Any, Any]:
        style, rng = list(STYLES)[number % len(STYLES)], np.random.default_rng([FIRST_SCENE, number])
        zoom = ZOOMS[0] if rng.random() < 0.5 else ZOOMS[rng.integers(1, len(ZOOMS))]
        side = 1 / zoom
        left, top = rng.uniform(0, 1 - side, 2) if zoom > 1 else (0.0, 0.0)
        return render(make_scene(style, FIRST_SCENE + number // len(STYLES)), VIEW, (left, top, side, side))

    pictures = np.stack([one(number) for number in tqdm(range(first, first + count), desc="real", mininterval=5)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def whole_photographs() -> Tensor:
    """(16, 3, 256, 256) in -1..1: the benchmark's photographs, which no training saw."""
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(PHOTOS.glob("*.webp"))])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def photo_pictures() -> Tensor:
    """(N, 3, 64, 64) in -1..1: the middles of the held-out halves of training's photographs, at every zoom."""
    levels = [level for photo in load_photos() for pyramid in photo_pyramids(held_out_half(photo)) for level in pyramid]
    corners = [[(side - VIEW) // 2 for side in level.shape[:2]] for level in levels]
    views = np.stack([level[y : y + VIEW, x : x + VIEW] for level, (y, x) in zip(levels, corners, strict=True)])
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction(model: LeavesModel, pictures: Tensor) -> dict[str, float]:
    """What is left of pictures (N, 3, h, w) in -1..1 after encoding and decoding.

    Returns:
        "psnr": dB, the mean over the pictures. "colour": mean distance of the mean colours of 8 x 8 pixel squares, in levels of 255.
    """
    back = torch.cat([model.decode(model.encode(part)).cpu() for part in torch.split(pictures, BATCH)])
    error = ((back - pictures) / 2).square().mean((1, 2, 3))
    colour = (F.avg_pool2d(back, 8) - F.avg_pool2d(pictures, 8)).abs().mean()
    return {"psnr": float((-10 * error.log10()).mean()), "colour": 127.5 * float(colour)}


def made_pictures(model: LeavesModel, count: int, *, steps: int = 20, guidance: float = 1.0, seed: int = 1) -> Tensor:
    """(count, 3, 64, 64) in -1..1 that the model made from noise, the world's styles in turn; without guidance: what it has learnt itself."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = make_sigmas("karras", steps, model.sigmas).to(model.device)
    styles = torch.tensor([model.style_index(style) for style in STYLES], device=model.device)
    done = []
    for start in tqdm(range(0, count, BATCH), desc="made", mininterval=5):
        n = min(BATCH, count - start)
        x = torch.randn((n, 4, *NATIVE), generator=generator).to(model.device) * sigmas[0]
        style = styles[torch.arange(start, start + n) % len(STYLES)]
        with torch.no_grad():
            z = make_sampler("dpmpp_2m", [0] * n)(model.denoiser(guidance), x, sigmas, extra_args={"style": style}, callback=lambda info: None)
        done.append(model.decode(z).cpu())
    return torch.cat(done)


def distance(pictures: Tensor, real: Tensor, whiten: Callable[[Tensor], Tensor], seed: int = 1) -> dict[str, float]:
    """Kernel distance of two sets of as many pictures, with a bootstrap interval of 95 %; 0 on average for two sets of one kind."""
    parts = kernel_parts(features(pictures)[:, None], features(real)[:, None], whiten)
    n, value = len(parts), float(parts.mean())
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    # A resample of the parts strays half as far as the distance does: see `kernel_parts`.
    low, high = np.percentile(value + 2 * (weights @ parts.numpy() / n - value), (2.5, 97.5))
    return {"value": value, "low": float(low), "high": float(high)}


class _Judge(nn.Sequential):
    def __init__(self) -> None:
        widths, layers = (3, 24, 48, 96), list[nn.Module]()
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Conv2d(96, 96, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 1))


def accuracy(made: Tensor, real: Tensor, *, rounds: int = 12, seed: int = 1) -> dict[str, float]:
    """How often a small convolutional network tells the two sets apart on a quarter of them that it has not learnt from.

    Returns:
        "value": share that is right, of as many made as real ones. "error": its standard error.
    """
    torch.manual_seed(seed)
    cut = 3 * min(len(made), len(real)) // 4
    x = torch.cat([made[:cut], real[:cut]])
    y = torch.cat([torch.ones(cut), torch.zeros(cut)])
    rest = min(len(made), len(real)) - cut
    judge = _Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.01)
    batches = math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=rounds * batches)
    for _ in tqdm(range(rounds), desc="judge", mininterval=5):
        for pick in torch.randperm(len(x)).chunk(batches):
            views = x[pick]
            # The world has no up and no left: turned and mirrored views are as good as new ones.
            views = torch.rot90(views, int(torch.randint(4, ())), (2, 3))
            views = views.flip(3) if torch.rand(()) < 0.5 else views
            optimiser.zero_grad()
            torch.autograd.backward(F.binary_cross_entropy_with_logits(judge(views)[:, 0], y[pick]))
            optimiser.step()
            schedule.step()
    judge.eval()
    with torch.no_grad():
        right = float(((judge(made[cut : cut + rest]) > 0).float().mean() + (judge(real[cut : cut + rest]) <= 0).float().mean()) / 2)
    return {"value": right, "error": math.sqrt(max(right * (1 - right), 0.25 / rest) / (2 * rest))}


def measure(model: LeavesModel, count: int, guidance: float = 1.0, steps: int = 20) -> dict[str, Any]:
    """All measures of as many made pictures, and of real ones in their place."""
    real, other = real_pictures(count, 0), real_pictures(count, count)
    whiten = whitening(features(real_pictures(count, 2 * count)))
    made = made_pictures(model, count, steps=steps, guidance=guidance)
    through = torch.cat([model.decode(model.encode(part)).cpu() for part in torch.split(other, BATCH)])
    return {
        "reconstruction": {
            **{style: reconstruction(model, other[k :: len(STYLES)]) for k, style in enumerate(STYLES)},
            "halves of photographs": reconstruction(model, photo_pictures()),
            "photographs, 256 px": reconstruction(model, whole_photographs()),
        },
        "kernel distance": {
            "real, other": distance(other, real, whiten),
            "real, through the autoencoder": distance(through, real, whiten),
            "made": distance(made, real, whiten),
        },
        "told from real": {
            "real, other": accuracy(other, real),
            "real, through the autoencoder": accuracy(through, real),
            "made": accuracy(made, real),
            "made, against real through the autoencoder": accuracy(made, through),
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.samples", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--name", default="", help="of the row in the file; by default the weights' file name")
    parser.add_argument("--count", type=int, default=1024, help="made pictures, spread evenly over the world's styles")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/bench/samples.json"), help="rows of other names that are in it stay")
    args = parser.parse_args(argv)
    if args.count < 64 or args.count % len(STYLES):
        parser.error(f"--count {args.count} does not do; use a multiple of {len(STYLES)} from 64 on")
    found = measure(load_model(args.weights, args.device), args.count, args.guidance, args.steps)
    facts = {"sha256": hashlib.sha256(args.weights.read_bytes()).hexdigest(), "count": args.count, "guidance": args.guidance, "steps": args.steps}
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows[args.name or args.weights.name] = facts | _rounded(found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, (json.dumps(rows, indent=1) + "\n").encode())
    print(json.dumps(rows[args.name or args.weights.name], indent=1))


def _rounded(found: Any) -> Any:
    return {key: _rounded(value) for key, value in found.items()} if isinstance(found, dict) else round(found, 4)


if __name__ == "__main__":
    main()
