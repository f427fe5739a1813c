"""What Forge and its kin have in common, whichever of the two packages they have: the engine before the model of a clone of `forge_objects.unet`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from modules import prompt_parser, shared
from torch import Tensor, nn

from apt_ext.webui.hosts.arguments import FLAT, Arguments
from apt_ext.webui.hosts.first_checkpoint import FirstCheckpoint
from apt_ext.webui.hosts.forge_control import ForgeControl, control_of, options_of_call
from apt_ext.webui.hosts.forge_seam import Called, fused_inside
from apt_ext.webui.hosts.host import AtOnce, Run
from apt_ext.webui.model import family_of

__all__ = ["ForgeKin"]


ATTACHED = (
    *("lora_patches", "patches", "patches_uuid"),  # whichever the host has: of LoRAs, and of what else changes weights
    *("object_patches", "weight_wrapper_patches", "model_options"),
    *("controlnet_linked_list", "extra_concat_condition", "extra_preserved_memory_during_sampling", "extra_model_patchers_during_sampling"),
)
"""What the host and its extensions put on a checkpoint's UNet before a pass, and a clone of it keeps; none of it is the model's own."""


def _keep_attached() -> Callable[[], None]:
    """What puts it on the UNet of a checkpoint that is loaded later: the host makes the model anew, and its refiner's has none of it."""
    unet = vars(shared.sd_model.forge_objects.unet)  # not the UNet itself: the host has to be able to let go of its weights
    attached = {name: unet[name] for name in ATTACHED if name in unet}

    def put_back() -> None:
        model = shared.sd_model
        model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
        unet = model.forge_objects.unet = model.forge_objects.unet.clone()
        for name, value in attached.items():
            setattr(unet, name, value)

    return put_back


class ForgeKin:
    """See `hosts.host.Host`."""

    sampler_coordinates = False
    whole_timesteps = True
    arguments: Arguments = FLAT

    def levels(self, model: Any) -> Tensor:
        """Every noise level of a checkpoint, ascending."""
        raise NotImplementedError

    def family(self, model: Any) -> str:
        """By 1.10.1's marks."""
        return family_of(model)

    def inside(self, denoiser: Any, run: Run, at_once: AtOnce | None = None) -> AbstractContextManager[None]:
        """See `Host`."""
        return fused_inside(denoiser, run, at_once)

    def parts_of(self, model: Called) -> Sequence[int | None]:
        """The negative prompt may come first, alone or not at all."""
        return model.parts

    def noise_levels(self, sampler: Any) -> Tensor | None:
        """The checkpoint's, for every sampler."""
        levels: Tensor = self.levels(shared.sd_model).detach().cpu()
        return levels

    def foresee_levels(self, sampler: Any, p: Any) -> None:
        """They are the checkpoint's, but for some of Neo's."""

    def vae_halves(self, model: Any) -> dict[str, nn.Module]:
        """It tiles by itself where memory asks for it."""
        return {}

    def noised(self, model: Any, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents as the checkpoint takes them at a noise level."""
        return clean + sigma * noise

    def evaluate(self, model: Any, clean: Tensor, noise: Tensor, timestep: int, text: Any, image: Tensor) -> None:
        """By the noise level."""
        unet = model.forge_objects.unet
        sigma = self.levels(model)[timestep].to(clean)
        cond = {"c_crossattn": text["crossattn"], "y": text["vector"]} if isinstance(text, dict) else {"c_crossattn": text}
        if image.shape[-2:] == clean.shape[-2:]:
            cond["c_concat"] = image
        levels = sigma.expand(len(clean))
        unet.model.apply_model(self.noised(model, clean, noise, sigma), levels, **cond, transformer_options=options_of_call(unet, levels))

    def load_again(self, checkpoint: Any) -> None:
        """Have a job's own checkpoint loaded in place of the refiner's, by its information."""
        raise NotImplementedError

    def first_checkpoint(self, p: Any, denoiser: Any) -> FirstCheckpoint:
        """See `Host`."""
        return FirstCheckpoint(p, denoiser, self.load_again, _keep_attached())

    def hires_as_first(self, p: Any) -> None:
        """Forge, Neo and reForge have a guidance of the hires pass, 1 where the API says nothing; the first two have modules besides, and fail."""
        first = {"hr_cfg": "cfg_scale", "hr_distilled_cfg": "distilled_cfg_scale"}
        given = {own: getattr(p, name) for own, name in first.items() if hasattr(p, own)} | {"hr_additional_modules": ["Use same choices"]}
        for own, value in given.items():
            if hasattr(p, own):
                setattr(p, own, value)

    def prompt_schedules(self, prompts: Any, steps: int, hires_steps: int | None) -> Any:
        """Neo has one way to read it."""
        old = (shared.opts.use_old_scheduling,) if hasattr(shared.opts, "use_old_scheduling") else ()
        return prompt_parser.get_learned_conditioning_prompt_schedules(prompts, steps, hires_steps, *old)

    def control_of(self, p: Any) -> ForgeControl:
        """The host's own, linked to its UNet."""
        return control_of(shared.sd_model.forge_objects.unet)

    def without_control(self, p: Any) -> AbstractContextManager[None]:
        """`evaluate` does without."""
        return nullcontext()

    def control_ended_on_failure(self, p: Any) -> AbstractContextManager[None]:
        """The host takes a clone of its UNet for every pass, so nothing is left."""
        return nullcontext()
