"""A pipeline's weights as the single file of the original code: the names that diffusers' own loading turns back."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.flow_file import encoders_file, transformer_file

Weights = dict[str, Tensor]
FLOWS = ("sd3", "sd35", "flux")

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0"}
UNET |= {"conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _unet_name(name: str, layers: int, attending: Collection[str]) -> str:
    """The original name of one of a UNet's tensors. `layers`: of a block. `attending`: blocks that have attention, such as "up_blocks.1"."""
    part, _, rest = name.partition(".")
    if part in ("down_blocks", "up_blocks"):
        block, what, index, inner = rest.split(".", 3)
        attends = f"{part}.{block}" in attending
        across, first = ("input_blocks", 1) if part == "down_blocks" else ("output_blocks", 0)
        place = first + int(block) * (layers + 1)
        if what == "downsamplers":
            return f"{across}.{place + layers}.0.op.{inner.removeprefix('conv.')}"
        if what == "upsamplers":
            return f"{across}.{place + layers}.{2 if attends else 1}.{inner}"
        number = 0 if what == "resnets" else 1
        return f"{across}.{place + int(index)}.{number}.{_renamed(inner, RESNET | {'conv_shortcut': 'skip_connection'}) if number == 0 else inner}"
    if part == "mid_block":
        what, index, inner = rest.split(".", 2)
        return f"middle_block.{2 * int(index) if what == 'resnets' else 1}.{_renamed(inner, RESNET) if what == 'resnets' else inner}"
    stem = next(stem for stem in UNET if name.startswith(stem + "."))
    return UNET[stem] + name.removeprefix(stem)


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    return _renamed(name, {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}) if "attn_1" in name else name


def _open_clip(weights: Weights, prefix: str) -> Weights:
    weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    made = {
        f"{prefix}positional_embedding": weights["embeddings.position_embedding.weight"],
        f"{prefix}token_embedding.weight": weights["embeddings.token_embedding.weight"],
        **{f"{prefix}ln_final.{part}": weights[f"final_layer_norm.{part}"] for part in ("weight", "bias")},
    }
    if "text_projection.weight" in weights:
        made[f"{prefix}text_projection"] = weights["text_projection.weight"].T
    for name, value in weights.items():
        found = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if found is None:
            continue
        block, part = f"{prefix}transformer.resblocks.{found[1]}.", found[3]
        if found[2] == "self_attn.q_proj":
            three = [weights[f"encoder.layers.{found[1]}.self_attn.{one}_proj.{part}"] for one in "qkv"]
            made[f"{block}attn.in_proj_{part}"] = torch.cat(three)
        elif found[2] in OPEN_CLIP:
            made[f"{block}{OPEN_CLIP[found[2]]}.{part}"] = value
    return made


def _clip(weights: Weights, prefix: str) -> Weights:
    return {prefix + ("" if name.startswith("text_model.") else "text_model.") + name: value for name, value in weights.items()}


def _unet_file(net: Any) -> Weights:
    attending = {".".join(name.split(".")[:2]) for name in net.state_dict() if ".attentions." in name}
    return {f"model.diffusion_model.{_unet_name(name, net.config.layers_per_block, attending)}": value for name, value in net.state_dict().items()}


def _vae_file(vae: Any) -> Weights:
    made = {}
    for name, value in vae.state_dict().items():
        theirs = _vae_name(name, len(vae.config.block_out_channels))
        convolution = "attn_1" in theirs and value.ndim == 2
        made[f"first_stage_model.{theirs}"] = value[..., None, None] if convolution else value
    return made


def _words_file(pipe: Any, kind: str) -> Weights:
    if kind in FLOWS:
        return encoders_file(pipe, kind)
    text = pipe.text_encoder.state_dict()
    if kind == "sd1":
        return _clip(text, "cond_stage_model.transformer.")
    if kind == "sd2v":
        return _open_clip(text, "cond_stage_model.model.")
    return _clip(text, "conditioner.embedders.0.transformer.") | _open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")


def save_single_file(pipe: Any, kind: str, path: Path, words: bool = True, vae: bool = True) -> None:
    """Write a pipeline of a kind as one .safetensors file.

    Args:
        words, vae: whether its text encoders and its autoencoder go into it, or its network alone.
    """
    made = transformer_file(pipe.transformer, kind) if kind in FLOWS else _unet_file(pipe.unet)
    made |= (_vae_file(pipe.vae) if vae else {}) | (_words_file(pipe, kind) if words else {})
    save_file({name: value.contiguous().clone() for name, value in made.items()}, path)
