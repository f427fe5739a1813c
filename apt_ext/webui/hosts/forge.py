"""Forge and Forge Neo, with the package `backend`: what they know of the loaded checkpoint, and where."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any

from backend.args import dynamic_args
from modules import processing, sd_models, shared
from torch import Tensor, nn

from apt_ext.webui.hosts.forge_control import ForgeControl
from apt_ext.webui.hosts.forge_kin import ForgeKin
from apt_ext.webui.hosts.host import Text
from apt_ext.webui.model import FAMILIES, no_words

__all__ = ["Forge"]


FLOWS = {"StableDiffusion3": "sd3", "Flux": "flux", "Chroma": "chroma", "ZImage": "zimage", "Lumina2": "lumina2"}
FLOWS |= {"StableDiffusionXL": "sdxlrf", "Mugen": "mugen"}
"""Engines of rectified flow that windows are made for, by their classes; each host has some of them."""
SHIFTED, NOISY = "PredictionFlux", ("euler_ancestral", "dpm_2_ancestral")
"""The predictor by which two of Forge's samplers tell that they have to add noise as rectified flow needs it, and the two."""
BY_SNR, NOISY_BY_SNR = "sigma_to_half_log_snr", ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm")
"""What Neo's samplers have for it, whatever the predictor, and those that add it so."""
SHIFT = ("distilled_cfg_scale", "hr_distilled_cfg")
"""Where Neo's jobs have the shift of their noise levels: of the pass alone or the first, and of the hires pass. Flux's have something else there."""
SAMPLERS = "k_diffusion.sampling"  # each has its own, loaded when it starts; importing it here would be another one's

CLAMPED = "clamp"
"""What a first pass that hands over pictures in 0..1 calls, and no other."""


class Forge(ForgeKin):
    """See `hosts.host.Host`."""

    name = "Forge"
    script = "js"

    def levels(self, model: Any) -> Tensor:
        """The predictor's."""
        levels: Tensor = _predictor(model).sigmas
        return levels

    def loaded(self) -> Any:
        """Before the first job there is a stand-in of the host's, which has no name."""
        model = sd_models.model_data.sd_model
        return model if hasattr(model, "sd_checkpoint_info") else None

    def family(self, model: Any) -> str:
        """By the marks that it has for 1.10.1's extensions.

        Raises:
            ValueError: for one that windows are not made for.
        """
        marks = vars(model)  # Neo has some of them only
        predicted = _predictor(model).prediction_type
        if predicted != "const":
            if marks.get("is_sdxl"):
                return "sdxl"
            if marks.get("is_sd2"):
                return "sd2v" if predicted == "v_prediction" else "sd2"
            if marks.get("is_sd1"):
                return "sd1"
        kind = type(model).__name__
        if predicted == "const" and kind in FLOWS:
            if kind == "Flux" and dynamic_args.get("kontext"):  # said of any file with that word in its name
                raise ValueError("Flux Kontext would see the whole reference picture in every window; choose another Flux, SDXL or SD 1.x checkpoint")
            return FLOWS[kind]
        flow = " of rectified flow" if predicted == "const" else ""  # SDXL is told of by it
        raise ValueError(f"{kind} checkpoints{flow} are not supported yet; choose an SD 1.x, SDXL, Flux or Chroma checkpoint")

    def flow_samplers(self, model: Any) -> Collection[str]:
        """See `Host`. With the predictor of SD3 Forge's take it for any other."""
        if hasattr(sys.modules.get(SAMPLERS), BY_SNR):
            return NOISY_BY_SNR
        return NOISY if type(_predictor(model)).__name__ == SHIFTED else ()

    def foresee_levels(self, sampler: Any, p: Any) -> None:
        """See `Host`. Neo gives some checkpoints the pass's shift when it begins, and other hosts none."""
        model = shared.sd_model
        if not vars(model).get("use_shift") or not hasattr(sampler, "get_sigmas"):
            return
        predictor = deepcopy(_predictor(model))
        predictor.set_parameters(shift=getattr(p, SHIFT[bool(p.is_hr_pass)]))
        linked = type(sampler.model_wrap)(predictor)
        linked.inner_model = sampler.model_wrap.inner_model
        sampler.model_wrap = linked

    def alphas_cumprod(self, model: Any) -> Tensor:
        """As its samplers by timesteps make them."""
        levels: Tensor = 1 / (self.levels(model) ** 2 + 1)
        return levels

    def crop_embedding(self, model: Any) -> Callable[[Tensor], Tensor] | None:
        """The embedding that all six numbers of its conditioning go through, (n,) -> (n, 256)."""
        if not model.is_sdxl:
            return None

        def embed(places: Tensor) -> Tensor:
            made: Tensor = model.embedder(places.flatten()).reshape(len(places), -1)
            return made

        return embed

    def unet(self, model: Any) -> nn.Module:
        """See `Host`."""
        network: nn.Module = model.forge_objects.unet.model.diffusion_model
        return network

    def noised(self, model: Any, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Of rectified flow by its time."""
        if _predictor(model).prediction_type == "const":
            return (1 - sigma) * clean + sigma * noise
        return super().noised(model, clean, noise, sigma)

    def text(self, model: Any) -> Text:
        """SDXL has two encoders, which take a text apart alike."""
        engine = model.text_processing_engine_l if model.is_sdxl else model.text_processing_engine
        return Text(engine.process_texts, engine.tokenize, engine.embeddings.find_embedding_at_position)

    def words_refused(self) -> str | None:
        """See `Host`."""
        return no_words(self.family(shared.sd_model))

    def control_of(self, p: Any) -> ForgeControl:
        """See `Host`. Transformers do not look at units; the host says nothing of it."""
        if shared.sd_model.forge_objects.unet.controlnet_linked_list is not None and not FAMILIES[self.family(shared.sd_model)].unet:
            raise ValueError("ControlNet does nothing on this host for checkpoints of rectified flow; turn its units off")
        return super().control_of(p)

    def first_pictures(self, decoded: Tensor) -> Tensor:
        """Forge and older copies of Neo leave it to their hires pass to bring them to 0..1; Neo 2.26 does it before."""
        first_pass = inspect.unwrap(processing.StableDiffusionProcessingTxt2Img.sample)
        return decoded * 2 - 1 if CLAMPED in first_pass.__code__.co_names and bool((decoded >= 0).all()) else decoded

    def load_again(self, checkpoint: Any) -> None:
        """The host's parameters still name it: the refiner only borrows them."""
        sd_models.forge_model_reload()


def _predictor(model: Any) -> Any:
    return model.forge_objects.unet.model.predictor
