"""Forge and Forge Neo, with the package `backend`: what they know of the loaded checkpoint, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from modules import sd_models, shared
from torch import Tensor, nn

from apt_ext.webui.hosts.arguments import FLAT, Arguments
from apt_ext.webui.hosts.forge_control import ForgeControl, control_of, options_of_call
from apt_ext.webui.hosts.forge_seam import Called, fused_inside
from apt_ext.webui.hosts.host import AtOnce, Run, Text

__all__ = ["Forge"]


class _FirstCheckpoint:
    """See `Host.first_checkpoint`. The host's parameters still name it: the refiner only borrows them."""

    def __init__(self, denoiser: Any):
        self._denoiser, self._own = denoiser, shared.sd_model.sd_checkpoint_info

    def restore(self) -> None:
        if shared.sd_model.sd_checkpoint_info == self._own:
            return
        sd_models.forge_model_reload()
        self._denoiser.model_wrap = None  # made anew for the loaded one


class Forge:
    """See `hosts.host.Host`."""

    name = "Forge"
    script = "js"
    sampler_coordinates = False
    whole_timesteps = True
    arguments: Arguments = FLAT

    def inside(self, denoiser: Any, run: Run, at_once: AtOnce | None = None) -> AbstractContextManager[None]:
        """See `Host`."""
        return fused_inside(denoiser, run, at_once)

    def parts_of(self, model: Called) -> Sequence[int | None]:
        """The negative prompt may come first, alone or not at all."""
        return model.parts

    def loaded(self) -> Any:
        """Before the first job there is a stand-in of the host's, which has no name."""
        model = sd_models.model_data.sd_model
        return model if hasattr(model, "sd_checkpoint_info") else None

    def family(self, model: Any) -> str:
        """By the marks that it has for 1.10.1's extensions.

        Raises:
            ValueError: for one that is no Stable Diffusion 1, 2 or XL.
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
        kind = "SD3" if marks.get("is_sd3") else type(model).__name__
        raise ValueError(f"{kind} checkpoints are not supported yet; choose an SD 1.x, SD 2.x or SDXL checkpoint")

    def noise_levels(self, sampler: Any) -> Tensor | None:
        """The predictor's, for every sampler."""
        levels: Tensor = _predictor(shared.sd_model).sigmas.detach().cpu()
        return levels

    def alphas_cumprod(self, model: Any) -> Tensor:
        """As its samplers by timesteps make them."""
        levels: Tensor = 1 / (_predictor(model).sigmas ** 2 + 1)
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

    def vae_halves(self, model: Any) -> dict[str, nn.Module]:
        """It tiles by itself where memory asks for it."""
        return {}

    def text(self, model: Any) -> Text:
        """SDXL has two encoders, which take a text apart alike."""
        engine = model.text_processing_engine_l if model.is_sdxl else model.text_processing_engine
        return Text(engine.process_texts, engine.tokenize, engine.embeddings.find_embedding_at_position)

    def evaluate(self, model: Any, clean: Tensor, noise: Tensor, timestep: int, text: Any, image: Tensor) -> None:
        """By the noise level."""
        unet = model.forge_objects.unet
        sigma = _predictor(model).sigmas[timestep].to(clean)
        cond = {"c_crossattn": text["crossattn"], "y": text["vector"]} if isinstance(text, dict) else {"c_crossattn": text}
        if image.shape[-2:] == clean.shape[-2:]:
            cond["c_concat"] = image
        levels = sigma.expand(len(clean))
        unet.model.apply_model(clean + sigma * noise, levels, **cond, transformer_options=options_of_call(unet, levels))

    def words_refused(self) -> str | None:
        """See `Host`."""
        return None

    def first_checkpoint(self, denoiser: Any) -> _FirstCheckpoint:
        """See `Host`."""
        return _FirstCheckpoint(denoiser)

    def control_of(self, p: Any) -> ForgeControl:
        """The host's own, linked to its UNet."""
        return control_of(shared.sd_model.forge_objects.unet)

    def without_control(self, p: Any) -> AbstractContextManager[None]:
        """`evaluate` does without."""
        return nullcontext()

    def control_ended_on_failure(self, p: Any) -> AbstractContextManager[None]:
        """The host takes a clone of its UNet for every pass, so nothing is left."""
        return nullcontext()


def _predictor(model: Any) -> Any:
    return model.forge_objects.unet.model.predictor
