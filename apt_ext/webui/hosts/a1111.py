"""AUTOMATIC1111's WebUI 1.10.1: where the engine comes under its sampler.

Only one sampler's own denoiser is changed, by giving it a subclass of its class for the length of one phase. What the host does around
its model (prompt editing, AND, callbacks, masks, previews, the refiner) stays the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from modules import prompt_parser, sd_hijack, sd_models, shared
from torch import Tensor, nn

from apt_ext.webui.hosts.arguments import NESTED, Arguments
from apt_ext.webui.hosts.controlnet import control_ended_on_failure, control_of, hook_again, without_control
from apt_ext.webui.hosts.first_checkpoint import FirstCheckpoint
from apt_ext.webui.hosts.host import AtOnce, Control, Run, Text
from apt_ext.webui.model import crop_embedding, family_of, no_words

__all__ = ["A1111", "fused_inside"]


@cache
def _with_engine(base: Any) -> Any:
    """The subclass of a CFG denoiser's class that asks its `apt_run` first."""

    class APTDenoiser(base):
        @property
        def inner_model(self) -> Any:
            return self.apt_run.wrap(super().inner_model)

        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.apt_run.begin(x, sigma)
            return super().forward(x, sigma, *args, **kwargs)

    return APTDenoiser


@contextmanager
def fused_inside(denoiser: Any, run: Any) -> Iterator[None]:
    """Within the block, a sampler's CFG denoiser asks a `PhaseRun`, or another with its `begin` and `wrap`; afterwards it is what it was."""
    base: Any = type(denoiser)
    denoiser.__class__ = _with_engine(base)
    denoiser.apt_run = run
    try:
        yield
    finally:
        del denoiser.apt_run
        denoiser.__class__ = base


class A1111:
    """See `hosts.host.Host`."""

    name = "WebUI"
    script = "_js"
    sampler_coordinates = True
    whole_timesteps = False
    arguments: Arguments = NESTED

    def inside(self, denoiser: Any, run: Run, at_once: AtOnce | None = None) -> AbstractContextManager[None]:
        """It reserves no memory."""
        return fused_inside(denoiser, run)

    def parts_of(self, model: Any) -> Sequence[int | None] | None:
        """All prompts come first, in one call or in several."""
        return None

    def loaded(self) -> Any:
        """See `Host`."""
        return sd_models.model_data.sd_model

    def family(self, model: Any) -> str:
        """See `Host`."""
        return "sd3" if getattr(model, "is_sd3", False) else family_of(model)

    def flow_samplers(self, model: Any) -> Collection[str]:
        """None: k-diffusion's know nothing of it."""
        return ()

    def noise_levels(self, sampler: Any) -> Tensor | None:
        """k-diffusion's samplers have a list of their own."""
        levels = getattr(sampler.model_wrap, "sigmas", None)
        return None if levels is None else levels.cpu()

    def foresee_levels(self, sampler: Any, p: Any) -> None:
        """They are the checkpoint's."""

    def alphas_cumprod(self, model: Any) -> Tensor:
        """See `Host`."""
        levels: Tensor = model.alphas_cumprod
        return levels

    def crop_embedding(self, model: Any) -> Callable[[Tensor], Tensor] | None:
        """One of its conditioner's embedders."""
        return crop_embedding(model)

    def unet(self, model: Any) -> nn.Module:
        """See `Host`."""
        network: nn.Module = model.model.diffusion_model
        return network

    def vae_halves(self, model: Any) -> dict[str, nn.Module]:
        """See `Host`; TAESD has none."""
        found = {name: getattr(model.first_stage_model, name, None) for name in ("encoder", "decoder")}
        return {name: half for name, half in found.items() if isinstance(half, nn.Module)}

    def text(self, model: Any) -> Text:
        """See `Host`."""
        stage = model.cond_stage_model
        return Text(stage.process_texts, stage.tokenize, sd_hijack.model_hijack.embedding_db.find_embedding_at_position)

    def evaluate(self, model: Any, clean: Tensor, noise: Tensor, timestep: int, text: Any, image: Tensor) -> None:
        """By the timestep, and with the noisy latent as the samplers by timesteps have it."""
        a = float(model.alphas_cumprod[timestep])
        if model.model.conditioning_key == "crossattn-adm":
            cond = {"c_crossattn": [text], "c_adm": image}
        else:
            cond = {**(dict(text) if isinstance(text, dict) else {"c_crossattn": [text]}), "c_concat": [image]}
        model.apply_model(a**0.5 * clean + (1 - a) ** 0.5 * noise, torch.full((len(clean),), timestep, device=clean.device), cond)

    def prompt_schedules(self, prompts: Any, steps: int, hires_steps: int | None) -> Any:
        """See `Host`."""
        return prompt_parser.get_learned_conditioning_prompt_schedules(prompts, steps, hires_steps, shared.opts.use_old_scheduling)

    def words_refused(self) -> str | None:
        """See `Host`."""
        if shared.opts.use_old_emphasis_implementation:
            return "with the old emphasis implementation; turn that setting off"
        return no_words(self.family(shared.sd_model))

    def hires_as_first(self, p: Any) -> None:
        """What it is not told, it takes from the first pass."""

    def first_pictures(self, decoded: Tensor) -> Tensor:
        """As they are."""
        return decoded

    def load_again(self, checkpoint: Any) -> None:
        """Have a checkpoint loaded, by its information."""
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=checkpoint)

    def first_checkpoint(self, p: Any, denoiser: Any) -> FirstCheckpoint:
        """See `Host`."""
        hook_again(p)  # the first pass may have had a refiner
        return FirstCheckpoint(p, denoiser, self.load_again, lambda: hook_again(p))

    def control_of(self, p: Any) -> Control:
        """Those of sd-webui-controlnet."""
        return control_of(p)

    def without_control(self, p: Any) -> AbstractContextManager[None]:
        """See `Host`."""
        return without_control(p)

    def control_ended_on_failure(self, p: Any) -> AbstractContextManager[None]:
        """See `Host`."""
        return control_ended_on_failure(p)
