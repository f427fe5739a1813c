"""SD3's and Flux's weights as the single file of the original code: the names that diffusers' own loading turns back."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Names = list[tuple[str, str]]

MLP = {"1": "0", "2": "2"}
SD3: Names = [
    (r"pos_embed\.pos_embed", "pos_embed"),
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"time_text_embed\.timestep_embedder\.linear_(\d)\.", "t_embedder.mlp.{mlp}."),
    (r"time_text_embed\.text_embedder\.linear_(\d)\.", "y_embedder.mlp.{mlp}."),
    (r"proj_out\.", "final_layer.linear."),
    (r"norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
]
SD3_BLOCK: Names = [
    (r"attn(2?)\.to_[qkv]\.", r"x_block.attn\1.qkv."),
    (r"attn\.add_[qkv]_proj\.", "context_block.attn.qkv."),
    (r"attn(2?)\.norm_([qk])\.", r"x_block.attn\1.ln_\2."),
    (r"attn\.norm_added_([qk])\.", r"context_block.attn.ln_\1."),
    (r"attn(2?)\.to_out\.0\.", r"x_block.attn\1.proj."),
    (r"attn\.to_add_out\.", "context_block.attn.proj."),
    (r"norm1\.linear\.", "x_block.adaLN_modulation.1."),
    (r"norm1_context\.linear\.", "context_block.adaLN_modulation.1."),
    (r"ff\.net\.(0\.proj|2)\.", "x_block.mlp.{fc}."),
    (r"ff_context\.net\.(0\.proj|2)\.", "context_block.mlp.{fc}."),
]
FLUX: Names = [
    (r"time_text_embed\.timestep_embedder\.linear_(\d)\.", "time_in.{layer}."),
    (r"time_text_embed\.text_embedder\.linear_(\d)\.", "vector_in.{layer}."),
    (r"time_text_embed\.guidance_embedder\.linear_(\d)\.", "guidance_in.{layer}."),
    (r"context_embedder\.", "txt_in."),
    (r"x_embedder\.", "img_in."),
    (r"proj_out\.", "final_layer.linear."),
    (r"norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
]
FLUX_DOUBLE: Names = [
    (r"attn\.to_[qkv]\.", "img_attn.qkv."),
    (r"attn\.add_[qkv]_proj\.", "txt_attn.qkv."),
    (r"attn\.norm_([qk])\.weight", "img_attn.norm.{kind}_norm.scale"),
    (r"attn\.norm_added_([qk])\.weight", "txt_attn.norm.{kind}_norm.scale"),
    (r"attn\.to_out\.0\.", "img_attn.proj."),
    (r"attn\.to_add_out\.", "txt_attn.proj."),
    (r"norm1\.linear\.", "img_mod.lin."),
    (r"norm1_context\.linear\.", "txt_mod.lin."),
    (r"ff\.net\.(0|2)(?:\.proj)?\.", r"img_mlp.\1."),
    (r"ff_context\.net\.(0|2)(?:\.proj)?\.", r"txt_mlp.\1."),
]
FLUX_SINGLE: Names = [
    (r"attn\.to_[qkv]\.|proj_mlp\.", "linear1."),
    (r"attn\.norm_([qk])\.weight", "norm.{kind}_norm.scale"),
    (r"norm\.linear\.", "modulation.lin."),
    (r"proj_out\.", "linear2."),
]
BLOCKS = {"sd3": {"transformer_blocks": ("joint_blocks", SD3_BLOCK)}}
BLOCKS |= {"sd35": BLOCKS["sd3"]}
BLOCKS["flux"] = {"transformer_blocks": ("double_blocks", FLUX_DOUBLE), "single_transformer_blocks": ("single_blocks", FLUX_SINGLE)}
ORDER = ("to_q.", "add_q_proj.", "to_k.", "add_k_proj.", "to_v.", "add_v_proj.", "proj_mlp.")


def _renamed(name: str, names: Names) -> str:
    for ours, theirs in names:
        found = re.match(ours, name)
        if found:
            one = found[1] if found.re.groups and found[1] else ""
            values = {"mlp": MLP.get(one), "layer": {"1": "in_layer", "2": "out_layer"}.get(one), "fc": {"0.proj": "fc1", "2": "fc2"}.get(one)}
            values["kind"] = {"q": "query", "k": "key"}.get(one)
            return found.expand(theirs).format(**values) + name[found.end() :]
    return name


def transformer_file(net: Any, kind: str, prefix: str = "model.diffusion_model.") -> Weights:
    """The weights of a transformer of kind "sd3", "sd35" or "flux" under their original names."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    last = f"transformer_blocks.{net.config.num_layers - 1}.norm1_context."
    for name, value in net.state_dict().items():
        block, number, rest = (*name.split(".", 2), "")[:3]
        if block in BLOCKS[kind]:
            theirs, names = BLOCKS[kind][block]
            renamed = f"{theirs}.{number}.{_renamed(rest, names)}"
        else:
            renamed = _renamed(name, FLUX if kind == "flux" else SD3)
        swapped = name.startswith("norm_out.linear.") or (kind != "flux" and name.startswith(last))  # scale and shift are the other way round
        value = torch.cat(value.chunk(2)[::-1]) if swapped else value
        parts.setdefault(prefix + renamed, []).append((next((n for n, part in enumerate(ORDER) if part in name), 0), value))
    return {name: torch.cat([value for _, value in sorted(found, key=lambda one: one[0])]) for name, found in parts.items()}


def encoders_file(pipe: Any, kind: str) -> Weights:
    """The text encoders that a pipeline has, under the names of the original files."""
    theirs = ("clip_l", "t5xxl") if kind == "flux" else ("clip_l", "clip_g", "t5xxl")
    made: Weights = {}
    for part, name in zip(("text_encoder", "text_encoder_2", "text_encoder_3"), theirs, strict=False):
        encoder = getattr(pipe, part, None)
        for key, value in {} if encoder is None else encoder.state_dict().items():
            inner = key if name == "t5xxl" or key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
            if (name, inner) != ("clip_l", "text_projection.weight"):  # the original has none: it projects nothing
                made[f"text_encoders.{name}.transformer.{inner}"] = value
    return made


def of_width(converter: Callable[..., Weights], width: int) -> Callable[..., Weights]:
    """diffusers' reader of Flux's files, whose code names the published width, for another one; every other instruction is its own."""
    code = converter.__code__
    assert 3072 in code.co_consts
    return FunctionType(code.replace(co_consts=tuple(width if value == 3072 else value for value in code.co_consts)), converter.__globals__)
