"""UNets of Stable Diffusion's sizes with random weights, through diffusers where it is installed. Speed does not hang on the weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from apt_ext.core.types import Denoiser
from apt_ext.demo.samplers import k_sampling

__all__ = ["SDXL", "SD_15", "SD_15_FLOPS", "Config", "guided", "make_unet", "panorama", "unet_flops", "without_diffusers", "words"]

SD_15_FLOPS = 803_273_441_280.0
"""Operations (two per multiplication with addition) of one forward pass of SD 1.5's UNet on one 64 x 64 latent and 77 tokens, as `unet_flops`
counts them with diffusers 0.42.1 and torch 2.13."""


class Config(NamedTuple):
    """A UNet as data: its window in latent pixels, the width of its words, and `UNet2DConditionModel`'s arguments."""

    name: str
    window: int
    words: int
    arguments: dict[str, Any]


SD_15 = Config(
    "SD 1.5",
    64,
    768,
    {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768},
)
"""unet/config.json of Stable Diffusion 1.5; what is not named is diffusers' default, made for it."""

SDXL = Config(
    "SDXL",
    128,
    2048,
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
)
"""unet/config.json of SDXL base 1.0."""


def without_diffusers() -> str:
    """Why the UNets cannot be made, or nothing."""
    missing = [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]
    return f"not measured: {' and '.join(missing)} not installed" if missing else ""


def make_unet(config: Config, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' own `UNet2DConditionModel` with random weights; on the meta device it has none."""
    k_sampling()  # makes torchvision importable where its compiled half does not fit
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        return UNet2DConditionModel(**config.arguments).to(dtype).eval().requires_grad_(False)


def words(config: Config, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Conditioning of one picture, one row each, the same for prompt and negative prompt: 77 tokens and, for SDXL, its pooled text and its sizes."""
    found = {"context": torch.zeros((1, 77, config.words), device=device, dtype=dtype)}
    if config.arguments.get("addition_embed_type") == "text_time":
        text = config.arguments["projection_class_embeddings_input_dim"] - 6 * config.arguments["addition_time_embed_dim"]
        found["text_embeds"] = torch.zeros((1, text), device=device, dtype=dtype)
        found["time_ids"] = torch.zeros((1, 6), device=device, dtype=dtype)
    return found


def guided(unet: Any, guidance: float = 7.5) -> Denoiser:
    """A k-diffusion denoiser around a UNet, with classifier-free guidance: two rows per view in one call."""

    def denoiser(x: Tensor, sigma: Tensor, **extra: Tensor) -> Tensor:
        pair = {name: torch.cat([value, value]) for name, value in extra.items()}
        context = pair.pop("context")
        level = sigma.to(x.dtype).view(-1, 1, 1, 1)
        seen = x / (1 + level.square()).sqrt()
        t = torch.full((2 * len(x),), 500, device=x.device)
        noise = unet(torch.cat([seen, seen]), t, encoder_hidden_states=context, added_cond_kwargs=pair or None).sample
        without, with_words = noise.chunk(2)
        return x - level * (without + guidance * (with_words - without))

    return denoiser


def unet_flops(config: Config) -> float:
    """Operations of one forward pass on one window, counted without computing anything."""
    unet, given = make_unet(config, "meta"), words(config, "meta", torch.float32)
    context = given.pop("context")
    x, t = torch.empty((1, 4, config.window, config.window), device="meta"), torch.ones(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        unet(x, t, encoder_hidden_states=context, added_cond_kwargs=given or None)
    return float(counter.get_total_flops())


def panorama(unet: Any, config: Config) -> Callable[[Tensor, int, int], int]:
    """diffusers' MultiDiffusion pipeline on the same UNet: (latents (1, 4, H, W), view batch, steps) -> views that it evaluated.

    Its windows are 64 latent pixels with stride 8 whatever is asked, so it is compared per view. It has no place for SDXL's conditioning.
    """
    from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    pipeline = StableDiffusionPanoramaPipeline(**parts, unet=unet, scheduler=scheduler, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def run(latents: Tensor, view_batch: int, steps: int) -> int:
        context = words(config, latents.device, latents.dtype)["context"]
        height, width = 8 * latents.shape[-2], 8 * latents.shape[-1]
        pipeline(
            height=height,
            width=width,
            num_inference_steps=steps,
            view_batch_size=view_batch,
            latents=latents,
            prompt_embeds=context,
            negative_prompt_embeds=context,
            output_type="latent",
        )
        return steps * len(pipeline.get_views(height, width))

    return run
