"""The networks of checkpoints as k-diffusion's denoisers: UNets that predict noise or v, and transformers of rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from apt_ext.checkpoints.controls import Control, acts, added_to_flux, added_to_sd3, added_to_unet
from apt_ext.core.borders import extend
from apt_ext.core.noise_levels import discrete_timestep, flow_timestep
from apt_ext.core.types import Denoiser
from apt_ext.demo.samplers import k_external

__all__ = ["flow_denoiser", "flow_sigmas", "flux_velocity", "guided", "sd3_velocity", "unet_denoiser", "unet_noise"]

Network = Callable[..., Tensor]
"""(B, C, h, w) as the network sees it, (B,) timesteps, and its words (a row for each of B) -> (B, C, h, w)."""

Hints = Sequence[Tensor | None]

FLOW_STEPS, FLOW_HIGHEST = 1000, 0.999  # at time 1 nothing of the picture is left, and k-diffusion's noise level would be infinite


def unet_noise(unet: Any, multiple: int, factor: int, controls: Sequence[Control] = ()) -> Network:
    """diffusers' `UNet2DConditionModel`, with its ControlNets: what it predicts, in float32.

    Args:
        multiple: of the sides that it takes; others are mirrored up to it. `factor`: pixels of a hint per latent pixel. `controls`: its ControlNets.

    Its words are context (B, T, C); for SDXL also pooled (B, P) and time_ids (B, 6); and hints for each ControlNet, see `added_to_unet`.
    """

    own = unet.dtype  # which looks through all its layers

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, time_ids: Tensor | None = None, hints: Hints = ()) -> Tensor:
        rows, columns = x.shape[-2:]
        below, right = -rows % multiple, -columns % multiple
        wide = extend(x, 0, 0, below, right, "reflect").to(own)
        sizes = None if pooled is None else {"text_embeds": pooled.to(own), "time_ids": time_ids}
        words = {"encoder_hidden_states": context.to(own), "added_cond_kwargs": sizes}
        added = added_to_unet(controls, hints, wide, t, (below * factor, right * factor), **words)
        return unet(wide, t, return_dict=False, **words, **added)[0].float()[..., :rows, :columns]

    return predict


def unet_denoiser(noise: Network, alphas_cumprod: Tensor, prediction: str) -> tuple[Denoiser, Tensor, Callable[[float], float]]:
    """k-diffusion's own wrapper around a UNet.

    Args:
        noise: from `unet_noise`. `alphas_cumprod`: (T,), the schedule that it was trained with.
        prediction: "epsilon" or "v_prediction".

    Returns:
        The denoiser; its (T,) ascending noise levels; sigma -> its timestep.

    Raises:
        ValueError: for a UNet that predicts something else.
    """
    kinds = {"epsilon": "DiscreteEpsDDPMDenoiser", "v_prediction": "DiscreteVDDPMDenoiser"}
    if prediction not in kinds:
        raise ValueError(
            f"prediction {prediction!r} of this checkpoint is not known; use one that predicts epsilon or v_prediction, or say so with --prediction"
        )
    if prediction == "epsilon":
        wrapped = k_external().DiscreteEpsDDPMDenoiser(noise, alphas_cumprod, quantize=False)
    else:
        wrapped = k_external().DiscreteVDDPMDenoiser(noise, alphas_cumprod, quantize=False)
    sigmas = wrapped.sigmas.cpu()
    return wrapped, sigmas, discrete_timestep(sigmas)


def flow_sigmas(shift: float) -> Tensor:
    """(T,) ascending noise levels of rectified flow, by its scheduler's times: t' = shift t / (1 + (shift - 1) t), sigma = t' / (1 - t').

    Source: Esser et al., "Scaling Rectified Flow Transformers" (2024), section 5.3.2, equation 23.
    """
    t = torch.arange(1, FLOW_STEPS + 1, dtype=torch.float64) / FLOW_STEPS
    t = shift * t / (1 + (shift - 1) * t)
    t = t[t <= FLOW_HIGHEST]
    return (t / (1 - t)).float()


def flow_denoiser(velocity: Network) -> tuple[Denoiser, Callable[[float], float]]:
    """A network of rectified flow in k-diffusion's coordinates.

    The flow's own state is x_t = (1 - t) z + t n and the network tells n - z; k-diffusion's is x = z + sigma n. With t = sigma / (1 + sigma) the one is
    the other divided by 1 + sigma, and z = x_t - t (n - z).

    Returns:
        The denoiser; sigma -> the model's timestep.
    """

    def denoise(x: Tensor, sigma: Tensor, **words: Any) -> Tensor:
        level = sigma.view(-1, 1, 1, 1)
        t = level / (1 + level)
        state = x / (1 + level)
        return state - t * velocity(state, t.flatten(), **words)

    return denoise, flow_timestep


def _padded(x: Tensor, multiple: int) -> Tensor:
    return extend(x, 0, 0, -x.shape[-2] % multiple, -x.shape[-1] % multiple, "reflect")


def sd3_velocity(transformer: Any, controls: Sequence[Control] = ()) -> Network:
    """diffusers' `SD3Transformer2DModel` with its ControlNets. Its words are context (B, T, C), pooled (B, P), and hints, see `added_to_sd3`."""
    patch, own = int(transformer.config.patch_size), transformer.dtype

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, hints: Hints = ()) -> Tensor:
        wide, time, words = _padded(x, patch).to(own), t * FLOW_STEPS, (context.to(own), pooled.to(own))
        out = transformer(
            hidden_states=wide,
            timestep=time,
            encoder_hidden_states=words[0],
            pooled_projections=words[1],
            block_controlnet_hidden_states=added_to_sd3(controls, hints, wide, time, len(transformer.transformer_blocks), *words),
            return_dict=False,
        )[0]
        return out.float()[..., : x.shape[-2], : x.shape[-1]]

    return predict


def flux_velocity(transformer: Any, guidance: float, controls: Sequence[Control] = ()) -> Network:
    """diffusers' `FluxTransformer2DModel`, which sees latents in squares of 2 x 2, each with its place.

    Args:
        guidance: what a distilled one is told; another one does not look at it. `controls`: its ControlNets.

    Its words are context (B, T, C), pooled (B, P), and hints for each ControlNet, see `added_to_flux`.
    """

    own, blocks = transformer.dtype, (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks))

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, hints: Hints = ()) -> Tensor:
        wide = _padded(x, 2)
        rows, columns = wide.shape[-2] // 2, wide.shape[-1] // 2
        places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        packed, told = rearrange(wide, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2).to(own), torch.full_like(t, guidance)
        common = {
            "timestep": t.to(own),
            "encoder_hidden_states": context.to(own),
            "pooled_projections": pooled.to(own),
            "txt_ids": torch.zeros(context.shape[1], 3, device=x.device, dtype=own),
            "img_ids": torch.nn.functional.pad(places, (1, 0)).to(x.device, own),
        }
        out = transformer(
            hidden_states=packed,
            guidance=told if transformer.config.guidance_embeds else None,
            return_dict=False,
            **added_to_flux(controls, hints, blocks, told, packed, **common),
            **common,
        )[0]
        whole = rearrange(out.float(), "b (h w) (c i j) -> b c (h i) (w j)", h=rows, i=2, j=2)
        return whole[..., : x.shape[-2], : x.shape[-1]]

    return predict


def guided(denoiser: Denoiser, guidance: float, above: float) -> Denoiser:
    """Classifier-free guidance around a denoiser: it is given `prompt` and `negative`, rows of words each, without the latter of which it is not
    guided; and `hints`, a `Shown` for each ControlNet.

    Args:
        guidance: 1 evaluates the prompt alone. `above`: the noise level below which the prompt alone is evaluated, at half the cost.
    """

    def denoise(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        prompt, negative, hints = extra["prompt"], extra.get("negative"), acts(extra.get("hints", ()), sigma)
        seen: dict[str, Any] = {"hints": hints} if any(hint is not None for hint in hints) else {}
        if negative is None or guidance == 1 or (above > 0 and float(sigma.max()) < above):
            return denoiser(x, sigma, **prompt, **seen)
        both: dict[str, Any] = {name: torch.cat([value, negative[name]]) for name, value in prompt.items()}
        if seen:
            both["hints"] = [None if hint is None else torch.cat([hint, hint]) for hint in hints]
        with_words, without = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        return without + guidance * (with_words - without)

    return denoise
