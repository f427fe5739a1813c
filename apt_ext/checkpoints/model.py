"""A checkpoint as a job sees it: `Model` of the command line, around a pipeline of diffusers'."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apt_ext.checkpoints.controls import Control, fit_control, phase_hints
from apt_ext.checkpoints.families import Family
from apt_ext.checkpoints.infotext import infotext
from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.latents import Autoencoder
from apt_ext.checkpoints.loading import check_numbers
from apt_ext.checkpoints.networks import (
    flow_denoiser,
    flow_sigmas,
    flux_velocity,
    guided,
    sd3_velocity,
    unet_denoiser,
    unet_noise,
)
from apt_ext.checkpoints.packages import diffusers
from apt_ext.checkpoints.prompts import encode, is_plain
from apt_ext.checkpoints.window_words import WindowWords, seen_in
from apt_ext.core.conditioning import ViewBatch, condition_views
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.ranks.ranks import ALONE, Ranks
from apt_ext.core.types import Denoiser, ModelFacts, Size, size_of
from apt_ext.demo.wanted import Conditioned, Source

__all__ = ["Checkpoint"]

Condition = Callable[[Mapping[str, Any], ViewBatch], Mapping[str, Any]]


class Checkpoint:
    """A pipeline's parts, ready for jobs. Its attributes are those of `Model`.

    Args:
        pipe: of diffusers', its parts where they are to compute. `family`: its kind.
        name: for reports and infotexts.
        device: where latents are. `by_layers`: whether its layers are moved one by one.
        native: side in pixels of the pictures that it composes, and of its windows; the checkpoint's own where it is None.
        prediction: what the UNet predicts, where its scheduler's configuration does not know.
        controls: ControlNets.

    Raises:
        ValueError: in one sentence, for parts that cannot be used.
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        name: str,
        device: torch.device,
        *,
        by_layers: bool = False,
        native: int | None = None,
        prediction: str | None = None,
        controls: Sequence[Control] = (),
    ):
        self.pipe, self.family, self.name, self.device, self.controls = pipe, family, name, device, tuple(controls)
        self.network = getattr(pipe, family.network)
        check_numbers({family.network: self.network} | {f"ControlNet {number}": net for number, (net, *_) in enumerate(self.controls, 1)})
        for control in self.controls:
            fit_control(control.network, self.network, family)
        self.autoencoder = Autoencoder(pipe.vae, by_layers)
        self.factor, self.channels = self.autoencoder.factor, self.autoencoder.channels
        self._check_channels()
        own, multiple = _native(pipe, family)
        side = own if native is None else _side(native, self.factor, multiple)
        config = pipe.scheduler.config
        self.prediction = "flow" if family.network != "unet" else prediction or str(config.get("prediction_type", "epsilon"))
        self._denoiser: Denoiser
        if self.prediction == "flow":
            self._denoiser, timestep = flow_denoiser(self._velocity(family.guidance))
            self.sigmas = flow_sigmas(_shift(config, (side // 2) ** 2))
        else:
            self._noise = unet_noise(self.network, multiple, self.factor, self.controls)
            schedule = diffusers().DDIMScheduler.from_config(config).alphas_cumprod.clamp(min=2**-24).to(device)
            self._denoiser, self.sigmas, timestep = unet_denoiser(self._noise, schedule, self.prediction)
        self.facts = ModelFacts(Size(side, side), multiple, float(self.sigmas[-1]), timestep, self.factor)
        self.smallest, self.first_size = math.ceil(side * side / 1.5), Size(side, side)
        self.prompts = family.network == "unet"
        self.ranks: Ranks = ALONE
        self._words: dict[tuple[str, str], Any] = {}
        self.about: dict[str, Any] = {
            "name": name,
            "family": family.name,
            "prediction": self.prediction,
            "window": side * self.factor,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "diffusers": diffusers().__version__,
        }

    def _check_channels(self) -> None:
        wanted = {"unet": self.channels, "sd3": self.channels, "flux": 4 * self.channels}[
            self.family.network if self.family.network == "unet" else self.family.name
        ]
        found = int(self.network.config.in_channels)
        if found != wanted:
            raise ValueError(
                f"the network of {self.name!r} takes {found} channels and its VAE makes latents for {wanted}; it is an inpainting checkpoint or of another "
                "kind: use an ordinary one, with --mask where a part of the picture is to stay"
            )

    def _velocity(self, guidance: float) -> Callable[..., Tensor]:
        return flux_velocity(self.network, guidance, self.controls) if self.family.name == "flux" else sd3_velocity(self.network, self.controls)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, factor * h, factor * w) RGB in -1..1 -> (B, C, h, w) float32."""
        return self.autoencoder.encode(pixels, self.device, self.ranks.map)

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, factor * h, factor * w) in -1..1."""
        return self.autoencoder.decode(z, self.ranks.map)

    def infotext(self, job: PromptJob, pixels: tuple[int, int]) -> str:
        """See `infotext`."""
        return infotext(job, pixels, self.name)

    def words(self, prompt: str, negative: str) -> Any:
        """The rows of a prompt and of a negative one, each pair encoded once."""
        if (prompt, negative) not in self._words:
            self._words[prompt, negative] = encode(self.pipe, self.family, prompt, negative)
        return self._words[prompt, negative]

    def conditioned(self, job: PromptJob, source: Source | None = None) -> Callable[[PhaseSetup | None], Conditioned]:
        """The model with a job's words in place.

        Raises:
            ValueError: for words that cannot be encoded, or a picture of a shape that the network has no places for.
        """
        prompt, negative = self.words(job.prompt, job.negative)
        networks = [self.network, *(control.network for control in self.controls)]
        _check_places(networks, self.family, self.first_size if source is None else size_of(source.base), self.factor)
        denoiser = self._denoiser if self.family.name != "flux" else flow_denoiser(self._velocity(job.guidance))[0]
        ready = guided(denoiser, job.guidance if negative is not None else 1.0, job.guided_above)
        whole = (self.first_size.rows * self.factor, self.first_size.columns * self.factor)
        if source is not None:
            whole = (round(source.pixels[1] * job.scale), round(source.pixels[0] * job.scale))
        extra: dict[str, Any] = {"prompt": self._sized(prompt, whole)}
        if negative is not None:
            extra["negative"] = self._sized(negative, whole)
        own, words = job.options, None
        self._check_regions(job)
        if source is not None and own.method == "accdiffusion" and own.word_threshold > 0 and self.prompts and is_plain(self.pipe, job.prompt):
            words = seen_in(self, job, source, self._noise, prompt)

        def of(setup: PhaseSetup | None) -> Conditioned:
            condition: Condition = self._with_corners
            if setup is None or source is None:
                return Conditioned(ready, extra, condition)
            if words is not None or own.parts():
                condition = WindowWords(words, setup, job, lambda text: self.words(text, job.negative)[0]).condition(condition)
            return Conditioned(ready, extra, self._with_hints(condition, source, setup, job))

        return of

    def _check_regions(self, job: PromptJob) -> None:
        texts = [region.text for region in job.options.parts()]
        if texts and not self.prompts:
            raise ValueError(f"Regions {texts[0][:40]!r} have no place on {self.family.label}; leave them out, or use an SD 1.x, SD 2.x or SDXL checkpoint")
        if texts and not is_plain(self.pipe, ", ".join([job.prompt, *texts])):
            raise ValueError(f"Regions {texts[0][:40]!r} with the prompt have weights or more tokens than fit one prompt; shorten them")

    def _sized(self, rows: Mapping[str, Tensor], whole: tuple[int, int]) -> dict[str, Tensor]:
        """A prompt's rows with SDXL's sizes: that of the picture, of its upper left corner, and of the picture again."""
        if self.family.name != "sdxl":
            return dict(rows)
        return {**rows, "time_ids": torch.tensor([[*whole, 0, 0, *whole]], dtype=torch.float32, device=self.device)}

    def _with_corners(self, extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
        """The conditioning of views; SDXL's crop corner is each local window's own, as in DemoFusion's published code."""
        cut = condition_views(extra, batch)
        if self.family.name != "sdxl" or not batch.windows:
            return cut
        corners = torch.tensor([(max(0, w.top) * self.factor, max(0, w.left) * self.factor) for w in batch.windows], dtype=torch.float32, device=self.device)
        placed = dict(cut)
        for name in ("prompt", "negative"):
            if name in cut:
                ids = cut[name]["time_ids"].clone()
                ids[:, 2:4] = batch.spread(corners)
                placed[name] = {**cut[name], "time_ids": ids}
        return placed

    def _with_hints(self, inner: Condition, source: Source, setup: PhaseSetup, job: PromptJob) -> Condition:
        """`inner`, and for each ControlNet its picture, as each view sees it."""
        if not self.controls:
            return inner
        given = [*source.hints, *[source.picture / 2 + 0.5] * (len(self.controls) - len(source.hints))]
        pictures = [picture.to(self.device) for picture in given]
        seen = phase_hints(self.controls, pictures, setup, job.schedule, self.sigmas.cpu(), self.autoencoder, self.ranks.map)
        return lambda extra, batch: {**inner(extra, batch), "hints": seen(batch)}


def _native(pipe: Any, family: Family) -> tuple[int, int]:
    """Side of the checkpoint's own windows in latent pixels, and what their sides have to be multiples of."""
    if family.network == "unet":
        config = pipe.unet.config
        return int(config.sample_size), 2 ** (len(config.block_out_channels) - 1)
    if family.name == "sd3":
        return int(pipe.transformer.config.sample_size), int(pipe.transformer.config.patch_size)
    return int(pipe.default_sample_size), 2


def _side(pixels: int, factor: int, multiple: int) -> int:
    unit = factor * multiple
    if pixels < unit or pixels > 4096 or pixels % unit:
        raise ValueError(f"native size {pixels} does not fit this checkpoint; use a multiple of {unit} pixels up to 4096")
    return pixels // factor


def _shift(config: Any, places: int) -> float:
    """The shift of a flow model's times. `places`: of a window, in the network's patches; some schedulers shift by their number."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or 1.0)
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    first, last = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
    return math.exp(low + (high - low) * (places - first) / (last - first))


def _check_places(networks: Sequence[Any], family: Family, base: Size, factor: int) -> None:
    """SD3, and each of its ControlNets, knows as many places as it was made with."""
    places = [int(network.config.pos_embed_max_size) * int(network.config.patch_size) for network in networks] if family.name == "sd3" else [math.inf]
    if max(base) > min(places):
        raise ValueError(
            f"the checkpoint would compose a picture of this shape with {max(base) * factor} pixels along a side, and knows places for "
            f"{min(places) * factor:g}; crop the picture"
        )
