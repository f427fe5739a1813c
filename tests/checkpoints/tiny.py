"""Pipelines of diffusers' own classes, as small as they can be, with random weights: they go through the same code as the large ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from apt_ext.checkpoints.packages import diffusers

WINDOW = 8  # latent pixels, 64 pixels of the picture
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with a vocabulary of letters."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(n) for n in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def clip_encoder(width: int, projected: int | None = None, tokens: int = 514) -> Any:
    """CLIP's text encoder; with a projection where one is named."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projected or width,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def t5(folder: Path, width: int) -> tuple[Any, Any]:
    """T5's tokenizer with a vocabulary of letters, and its encoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(n), -3.0) for n in range(97, 123))]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=64)
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def vae(channels: int = 4, **more: Any) -> Any:
    """An autoencoder of factor 8."""
    return diffusers().AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=8 * WINDOW,
        **more,
    )


def unet(cross: int, **more: Any) -> Any:
    """A UNet with cross-attention at the whole, a half and a quarter of its latent, as SDXL's has it at the latter two."""
    arguments = {
        "sample_size": WINDOW,
        "block_out_channels": (8, 16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": cross,
    }
    return diffusers().UNet2DConditionModel(**arguments | more)


def pipeline(kind: str, folder: Path) -> Any:
    """A pipeline of a family: "sd1", "sd2v", "sdxl", "sd3", "sd35" (with T5) or "flux"; the same weights every time."""
    torch.manual_seed(sum(map(ord, kind)))
    library, tokenizer = diffusers(), clip_tokenizer(folder / "words")
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if kind in ("sd1", "sd2v"):
        more = {"prediction_type": "v_prediction"} if kind == "sd2v" else {}
        net = unet(32) if kind == "sd1" else unet(32, use_linear_projection=True, attention_head_dim=(2, 2, 4))
        return library.StableDiffusionPipeline(
            vae=vae(), text_encoder=clip_encoder(32), tokenizer=tokenizer, unet=net, scheduler=library.DDIMScheduler(**BETAS, **more), **none
        )
    if kind == "sdxl":
        net = unet(
            32 + 48,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 48,
        )
        return library.StableDiffusionXLPipeline(
            vae=vae(force_upcast=True, scaling_factor=0.13025),
            text_encoder=clip_encoder(32),
            text_encoder_2=clip_encoder(48, 48),
            tokenizer=tokenizer,
            tokenizer_2=clip_tokenizer(folder / "words_2"),
            unet=net,
            scheduler=library.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        )
    flow = library.FlowMatchEulerDiscreteScheduler
    latents = vae(16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    if kind in ("sd3", "sd35"):
        tokens, encoder = t5(folder, 96) if kind == "sd35" else (None, None)
        own: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if kind == "sd35" else {}
        net = library.SD3Transformer2DModel(
            sample_size=WINDOW,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=96,
            caption_projection_dim=32,
            pooled_projection_dim=32 + 48,
            pos_embed_max_size=12,
            **own,
        )
        first = clip_encoder(32, 32)
        torch.nn.init.eye_(first.text_projection.weight)  # as published: single files leave it out
        return library.StableDiffusion3Pipeline(
            transformer=net,
            scheduler=flow(shift=3.0),
            vae=latents,
            text_encoder=first,
            tokenizer=tokenizer,
            text_encoder_2=clip_encoder(48, 48),
            tokenizer_2=clip_tokenizer(folder / "words_2"),
            text_encoder_3=encoder,
            tokenizer_3=tokens,
        )
    tokens, encoder = t5(folder, 32)
    net = library.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return library.FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=latents,
        text_encoder=clip_encoder(32),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokens,
        transformer=net,
    )
