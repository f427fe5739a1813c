"""Trains the embedded model: first the autoencoder, then the UNet on its latents.

    python -m apt_ext.demo.train --out build/model

Every step draws its data and noise from a generator seeded with (seed, step), so a run that was cut off goes on from its last
checkpoint as if it had not been. With --minutes the clock ends a run, and begins its descent, wherever it is by then.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from apt_ext.demo.autoencoder import FACTOR, LATENT_CHANNELS, Autoencoder, Encoder
from apt_ext.demo.blocks import Module
from apt_ext.demo.dataset import STYLE_NAMES, VIEW, draw, draw_large, make_pool, pieces, recolour, soften, training_photos
from apt_ext.demo.fit import PARTS, Plan, autocast, compact, fit, has_bfloat16, save_whole
from apt_ext.demo.model import alphas_cumprod, load_model
from apt_ext.demo.unet import UNet

LARGE_SIDES = (128, 192, 256)  # pixels
LARGEST_ENLARGED = 32  # latent pixels


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, besides the machine and the clock."""

    seed: int = 2
    scenes: int = 150
    whole_scenes: int = 450
    photo_share: float = 0.25
    autoencoder_photo_share: float = 0.4
    recoloured: float = 0.25
    large: float = 0.6  # share of the autoencoder's batches that are of larger views, so that it knows their statistics
    softened: float = 0.25
    patched: float = 0.2
    anchor: float = 0.3  # to the latents of the weights that it starts from, if it does
    texture: float = 0.0  # weight of the local contrast in the autoencoder's loss
    frozen: float = 0.0  # 1: the encoder stays as it is, so that latents mean what they meant, and the decoder alone trains
    latent_noise: float = 0.1  # on the latents, of about unit variance, while the autoencoder trains
    autoencoder_steps: int = 1200
    autoencoder_batch: int = 32
    autoencoder_rate: float = 1.0
    latents: int = 64_000
    unet_steps: int = 24_000
    unet_batch: int = 64
    unet_rate: float = 1.0
    style_dropout: float = 0.15
    centre: float = -0.6  # of the timesteps' density: shapes are decided above it, and enlarging begins below


def local_contrast(x: Tensor) -> list[Tensor]:
    """Standard deviation of the two finest octaves of (n, 3, h, w), the finest first, within squares of 8 of the octave's own pixels."""
    found = []
    for _ in range(2):
        low = F.avg_pool2d(x, 2)
        octave = x - F.interpolate(low, scale_factor=2, mode="bilinear")
        found.append((F.avg_pool2d(octave.square(), 8, stride=4) + 1e-4).sqrt())
        x = low
    return found


def autoencoder_loss(
    model: Autoencoder,
    x: Tensor,
    latent_noise: float,
    rng: np.random.Generator,
    noise: torch.Generator,
    teacher: Encoder | None = None,
    anchor: float = 0.0,
    texture: float = 0.0,
) -> Tensor:
    """Reconstruction, unit latents, and equivariance to resizing in both directions.

    Equivariance is what patch fusion needs of an autoencoder: an enlarged latent has to decode to the enlarged picture
    (as Stable Diffusion's does), or every phase starts from a checkerboard. It is asked of about a quarter of the pictures, which is enough.
    The noise on the latents keeps what the decoder needs well above the errors that a diffusion model makes.

    Args:
        x: (n, 3, side, side), the side a multiple of 64. Of larger views than 64 pixels there are too few to ask for unit latents.
        teacher: an encoder whose latents are to stay, as far as this one can: those that it gives a view in pieces of 64 pixels, their
            outermost two latents apart, which see the piece's end.
        anchor: weight of the mean squared distance from them.
        texture: weight of the mean distance of the local contrasts. The pixels' own distances are least where a decoder smooths what it cannot know:
            they cost a picture the very power above the input's Nyquist limit that an enlargement is for.
    """
    z = model.encoder(x)
    y = model.decoder(z + latent_noise * torch.randn(z.shape, generator=noise, device=z.device)).float()
    detail = F.l1_loss(y[..., 1:, :] - y[..., :-1, :], x[..., 1:, :] - x[..., :-1, :]) + F.l1_loss(y[..., 1:] - y[..., :-1], x[..., 1:] - x[..., :-1])
    colour = F.mse_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))
    loss = F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x) + 0.3 * detail + colour
    if texture:
        loss = loss + texture * sum(F.l1_loss(made, true) for made, true in zip(local_contrast(y), local_contrast(x), strict=True))
    if teacher is not None and anchor:
        with torch.no_grad():
            wanted = teacher(pieces(x, VIEW)).float()
        rim = 2 if x.shape[-1] > VIEW else 0
        inner = slice(rim, wanted.shape[-1] - rim)
        loss = loss + anchor * F.mse_loss(pieces(z.float(), VIEW // FACTOR)[..., inner, inner], wanted[..., inner, inner])
    if x.shape[-1] == VIEW:
        mean, std = z.float().mean((0, 2, 3)), z.float().std((0, 2, 3))
        loss = loss + 0.02 * (mean.square().mean() + (std - 1).square().mean())
    x, z = x[: len(x) // 4 + 1], z[: len(x) // 4 + 1]
    size = min(z.shape[-1], LARGEST_ENLARGED)
    k = round(size * float(rng.choice((0.25, 0.375, 0.5, 0.625))))
    i, j = (int(v) for v in rng.integers(0, z.shape[-1] - k + 1, 2))
    patch = x[..., FACTOR * i : FACTOR * (i + k), FACTOR * j : FACTOR * (j + k)]
    enlarged = F.interpolate(z[..., i : i + k, j : j + k].float(), size=(size, size), mode="bicubic")
    bigger = F.l1_loss(model.decoder(enlarged).float(), F.interpolate(patch, size=(FACTOR * size, FACTOR * size), mode="bicubic"))
    shrunk = model.encoder(F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)).float()
    smaller = F.mse_loss(shrunk, F.interpolate(z.float(), scale_factor=0.5, mode="bicubic", antialias=True))
    return loss + 0.5 * bigger + 0.05 * smaller


def unet_loss(model: Callable[..., Tensor], z: Tensor, style: Tensor, alphas: Tensor, dropout: float, centre: float, noise: torch.Generator) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) z (Salimans and Ho, "Progressive Distillation", 2022).

    The timesteps of a batch are the quantiles of a logit-normal density, spread evenly from a random first one (Kingma et al., "Variational
    Diffusion Models", 2021; the density after Esser et al., "Scaling rectified flow transformers", 2024).

    Args:
        z: (n, 4, h, w) of unit variance. `style`: (n,). `alphas`: (1000,).
        dropout: share of the pictures that are shown without their style. `centre`: the density's, as a logit.
    """
    n, device = len(z), z.device
    quantiles = (torch.arange(n, device=device) + torch.rand((), generator=noise, device=device)) / n
    t = (1000 * torch.sigmoid(torch.special.ndtri(quantiles) + centre)).long().clamp(max=999)
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
    parser.add_argument("--start", type=Path, help="weights to begin with, a .safetensors file of this model; else random ones")
    parser.add_argument("--photos", type=Path, help="folder with the photographs of Debian packages (photos.py lists them); else the style has ten halves")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that render scenes")
    parser.add_argument("--autoencoder-minutes", type=float, default=0.0, help="of computing, after which its training has ended; 0: by steps alone")
    parser.add_argument("--minutes", type=float, default=0.0, help="the same of the UNet's; may be changed when a run goes on")
    parser.add_argument("--compile", action="store_true", help="compile the UNet first, with a C++ compiler, in two minutes; for processors without bfloat16")
    defaults = Recipe()
    for field, value in asdict(defaults).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    recipe = Recipe(**{field: getattr(args, field) for field in asdict(defaults)})
    device = torch.device(args.device)
    if args.compile and device.type == "cpu" and has_bfloat16(device):
        # torch 2.13 loses the gradient of a doubling in bfloat16 there, and with it all that the UNet's lower levels would learn.
        parser.error("--compile does not do on this processor, which computes in bfloat16: leave it out, steps are faster without it")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    begin = load_model(args.start) if args.start else None
    autoencoder, unet = (begin.autoencoder, begin.unet) if begin else (Autoencoder(), UNet(len(STYLE_NAMES)))
    autoencoder, unet = autoencoder.train().requires_grad_(True), unet.train().requires_grad_(True)
    teacher = copy.deepcopy(autoencoder.encoder).to(device).eval().requires_grad_(False) if begin else None
    file = args.out / "latents.pt"
    photos = training_photos(args.photos) if recipe.photo_share and not file.exists() else []
    pool = [] if file.exists() else make_pool(recipe.seed, recipe.scenes, recipe.whole_scenes, photos, args.workers)

    def generators(*numbers: int) -> tuple[np.random.Generator, torch.Generator]:
        rng = np.random.default_rng([recipe.seed, *numbers])
        return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))

    def autoencoder_part(step: int, part: int) -> Tensor:
        rng, noise = generators(1, step, part)
        share, size = recipe.autoencoder_photo_share if recipe.photo_share else 0.0, recipe.autoencoder_batch // PARTS
        if rng.random() < recipe.large:
            side = int(rng.choice(LARGE_SIDES))
            x = draw_large(pool, max(1, round(size * VIEW**2 / side**2)), side, share, recipe.patched, rng)
        else:
            x, _ = draw(pool, size, share, rng)
        x = soften(recolour(x, recipe.recoloured, rng), recipe.softened, rng).to(device, memory_format=torch.channels_last)
        with autocast(device):
            return autoencoder_loss(autoencoder, x, recipe.latent_noise, rng, noise, teacher, recipe.anchor, recipe.texture)

    def nothing(_: Module) -> None:
        """Half a model is of no use to anyone."""

    plan = Plan(recipe.seed, recipe.autoencoder_steps, args.autoencoder_minutes, recipe.autoencoder_rate, every=100)
    if recipe.frozen:
        trained = autoencoder.eval()
        trained.encoder.requires_grad_(False)
        trained.decoder = fit(autoencoder.decoder.train(), autoencoder_part, plan, args.out / "decoder.pt", device, nothing).eval()
    else:
        trained = fit(autoencoder, autoencoder_part, plan, args.out / "autoencoder.pt", device, nothing).eval()

    if not file.exists():
        z = torch.empty(recipe.latents, LATENT_CHANNELS, VIEW // FACTOR, VIEW // FACTOR)
        styles = torch.empty(recipe.latents, dtype=torch.long)
        with torch.no_grad(), autocast(device):
            for k, rows in enumerate(tqdm(list(_batches(recipe.latents, 256)), desc="latents", mininterval=10)):
                x, styles[rows] = draw(pool, rows.stop - rows.start, recipe.photo_share, np.random.default_rng([recipe.seed, 2, k]))
                z[rows] = trained.encoder(x.to(device, memory_format=torch.channels_last)).float().cpu()
        save_whole({"z": z, "styles": styles}, file)
    kept = torch.load(file, weights_only=True)
    z, styles, alphas = kept["z"], kept["styles"].to(device), alphas_cumprod().to(device)
    shift, scale = z.mean((0, 2, 3)), z.std((0, 2, 3))
    z = ((z - shift[:, None, None]) / scale[:, None, None]).to(device)

    network = torch.compile(unet) if args.compile else unet

    def unet_part(step: int, part: int) -> Tensor:
        rng, noise = generators(3, step, part)
        pick = torch.from_numpy(rng.integers(len(z), size=recipe.unet_batch // PARTS)).to(device)
        with autocast(device):
            return unet_loss(network, z[pick], styles[pick], alphas, recipe.style_dropout, recipe.centre, noise)

    def export(average: Module) -> None:
        """The model as it is, to use, and the checkpoint at half its size, to keep."""
        weights = {f"autoencoder.{k}": v for k, v in trained.state_dict().items()} | {f"unet.{k}": v for k, v in average.state_dict().items()}
        weights = {k: v.cpu().half().contiguous() for k, v in weights.items()} | {"latent_shift": shift, "latent_scale": scale}
        partial = args.out / "leaves.tmp"
        save_file(weights, partial, metadata={"styles": ",".join(STYLE_NAMES), "recipe": json.dumps(asdict(recipe))})
        partial.replace(args.out / "leaves.safetensors")
        save_whole(compact(torch.load(args.out / "unet.pt", map_location="cpu", weights_only=True)), args.out / "unet-compact.pt")

    plan = Plan(recipe.seed, recipe.unet_steps, args.minutes, recipe.unet_rate)
    fit(unet, unet_part, plan, args.out / "unet.pt", device, export)
    print(f"{args.out / 'leaves.safetensors'}: {(args.out / 'leaves.safetensors').stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
