"""The embedded model: weights, encoding, decoding and a k-diffusion denoiser with guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apt_ext.core.borders import extend
from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.ranks.ranks import ALONE, Ranks
from apt_ext.core.tiles.autoencoder import run_in_tiles
from apt_ext.core.types import Denoiser, ModelFacts, Size
from apt_ext.demo.autoencoder import FACTOR, LATENT_CHANNELS, Autoencoder
from apt_ext.demo.blocks import channels_last
from apt_ext.demo.samplers import k_external
from apt_ext.demo.unet import MULTIPLE, UNet
from apt_ext.demo.wanted import Conditioned, Job, Source

__all__ = ["NATIVE", "WEIGHTS", "LeavesModel", "alphas_cumprod", "choose_device", "load_model"]

WEIGHTS = Path(__file__).parent / "weights" / "leaves.safetensors"
NATIVE = Size(16, 16)
TILE, HALO, PATCH, SHARE = 256, 10, 24, 0.34  # latent pixels, and the share of the picture that statistics are taken from


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's own noise schedule, (1000,)."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


class LeavesModel:
    """A latent diffusion model of 64 x 64 pixel pictures.

    Attributes:
        styles: names of the styles that it was trained on.
        sigmas: (1000,) its ascending noise levels.
        The others are those of `Model`.
    """

    factor, channels, smallest, prompts = FACTOR, LATENT_CHANNELS, 0, False
    first_size = NATIVE

    def __init__(self, autoencoder: Autoencoder, unet: UNet, shift: Tensor, scale: Tensor, styles: tuple[str, ...], device: torch.device):
        self.autoencoder = channels_last(autoencoder, device).eval().requires_grad_(False)
        self.unet = channels_last(unet, device).eval().requires_grad_(False)
        self.styles, self.device = styles, device
        self._shift, self._scale = shift.to(device)[:, None, None], scale.to(device)[:, None, None]
        self._wrapped = k_external().DiscreteVDDPMDenoiser(self._network, alphas_cumprod().to(device), quantize=False).to(device)
        self.about: dict[str, Any] = {}
        self.ranks: Ranks = ALONE
        self.sigmas: Tensor = self._wrapped.sigmas.cpu()
        self.facts = ModelFacts(NATIVE, 1, float(self.sigmas[-1]), discrete_timestep(self.sigmas), FACTOR)

    def _network(self, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
        """The UNet on any size: sides are mirrored up to a multiple of what its halvings need."""
        rows, columns = x.shape[-2:]
        wide = extend(x, 0, 0, -rows % MULTIPLE, -columns % MULTIPLE, "reflect")
        return self.unet(wide.contiguous(memory_format=torch.channels_last), t, style)[..., :rows, :columns]

    def style_index(self, style: str) -> int:
        """Index of a style; "none" is the model without guidance by style.

        Raises:
            ValueError: for a style that does not exist.
        """
        if style == "none":
            return len(self.styles)
        if style not in self.styles:
            raise ValueError(f"style {style!r} does not exist; use one of {', '.join(self.styles)} or none")
        return self.styles.index(style)

    def denoiser(self, guidance: float, above: float = 0.0) -> Denoiser:
        """A k-diffusion denoiser with classifier-free guidance: x (B, C, H, W), sigma (B,), style (B,) -> (B, C, H, W).

        Args:
            guidance: 1 evaluates the style alone.
            above: the noise level below which the style alone is evaluated, at half the cost. Guidance at low noise changes little
                (Kynkaanniemi et al., "Applying guidance in a limited interval", NeurIPS 2024, section 3).
        """

        def guided(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            style = extra["style"]
            if guidance == 1 or (above > 0 and float(sigma[0]) < above):
                return self._wrapped(x, sigma, style=style)
            none = torch.full_like(style, len(self.styles))
            with_style, without = self._wrapped(torch.cat([x, x]), torch.cat([sigma, sigma]), style=torch.cat([style, none])).chunk(2)
            return without + guidance * (with_style - without)

        return guided

    def conditioned(self, job: Job, source: Source | None = None) -> Callable[[PhaseSetup | None], Conditioned]:
        """The model guided towards the job's style; every phase and every window sees the same."""
        style = torch.tensor([self.style_index(job.style)], device=self.device)
        return lambda setup: Conditioned(self.denoiser(job.guidance, job.guided_above), {"style": style})

    def infotext(self, job: Job, pixels: tuple[int, int]) -> str:
        """Every setting of a job by its name."""
        values = asdict(job)
        flat = {name: value for name, value in values.items() if name not in ("options", "schedule")} | values["schedule"] | values["options"]
        return ", ".join(f"APT {name.replace('_', ' ')}: {value}" for name, value in flat.items())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, 4h, 4w) RGB in -1..1 -> (B, 4, h, w) unit-variance latents. Large pictures go through in tiles."""
        z = self._tiled(self.autoencoder.encoder, pixels.to(self.device), Fraction(1, FACTOR), FACTOR)
        return (z - self._shift) / self._scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) latents -> (B, 3, 4h, 4w) RGB in -1..1. Large pictures go through in tiles."""
        return self._tiled(self.autoencoder.decoder, z * self._scale + self._shift, Fraction(FACTOR), 1).clamp_(-1, 1)

    def _tiled(self, part: torch.nn.Module, x: Tensor, factor: Fraction, unit: int) -> Tensor:
        """Run the encoder or the decoder over tiles, with one set of normalisation statistics for all of them."""
        return run_in_tiles(part, part, x, factor, tile=TILE * unit, halo=HALO * unit, side=PATCH, share=SHARE, deal=self.ranks.map)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a CUDA device where there is one.

    Raises:
        ValueError: where there is no such device, or nothing can be put on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None


def load_model(path: Path = WEIGHTS, device: torch.device | str = "cpu") -> LeavesModel:
    """Load the embedded model from a safetensors file.

    Raises:
        ValueError: where the file is missing or is not this model's.
    """
    if not path.is_file():
        raise ValueError(f"the model's weights {str(path)!r} do not exist; restore the file or train it with: python -m apt_ext.demo.train")
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}); restore the file") from None
    if "styles" not in facts:
        raise ValueError(f"{str(path)!r} holds other weights than the embedded model's; restore the file")
    styles = tuple(facts["styles"].split(","))

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    autoencoder, unet = Autoencoder(), UNet(len(styles))
    # Weights from before the autoencoder had a straight path for colour lack it; it is zero in a new one.
    older = {name: value for name, value in autoencoder.state_dict().items() if name.endswith("colour.weight")}
    autoencoder.load_state_dict(older | part("autoencoder."))
    unet.load_state_dict(part("unet."))
    assert tensors["latent_shift"].shape == (LATENT_CHANNELS,)
    return LeavesModel(autoencoder, unet, tensors["latent_shift"], tensors["latent_scale"], styles, torch.device(device))
