"""Tiny ControlNets of diffusers' own classes, with random weights that do something: theirs begin with nothing but zeros."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def unet_control(unet: Any) -> tuple[Any, list[Any]]:
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
    return net, [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]


def sd3_control(transformer: Any, **more: Any) -> tuple[Any, list[Any]]:
    from diffusers import SD3ControlNetModel

    taken = ("sample_size", "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "caption_projection_dim", "pooled_projection_dim")
    own = {name: transformer.config[name] for name in (*taken, "out_channels", "pos_embed_max_size", "joint_attention_dim")}
    net = SD3ControlNetModel(**own | {"num_layers": 1, "force_zeros_for_pooled_projection": False} | more)
    return net, [*net.controlnet_blocks, net.pos_embed_input.proj]


def flux_control(transformer: Any, **more: Any) -> tuple[Any, list[Any]]:
    from diffusers import FluxControlNetModel

    taken = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
    own = {name: transformer.config[name] for name in taken} | {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    net = FluxControlNetModel(**own | more)
    hint = [net.input_hint_block.conv_out] if net.input_hint_block is not None else []
    return net, [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder, *hint]


CONTROLS: dict[str, Callable[..., tuple[Any, list[Any]]]] = {"sd3": sd3_control, "flux": flux_control}
# Each as people have them: told nothing of the prompt's sum (InstantX's), borrowing the network's places (SD3.5's large ones), of pixels (XLabs's).
KINDS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3-zeros": {"force_zeros_for_pooled_projection": True},
    "sd3-borrowing": {"use_pos_embed": False, "joint_attention_dim": None, "num_layers": 2},
    "flux": {},
    "flux-double": {"num_single_layers": 0, "guidance_embeds": False},
    "flux-pixels": {"conditioning_embedding_channels": 16, "patch_size": 2},
}


def saved_control(network: Any, kind: str, path: Path) -> Path:
    """A folder with a ControlNet for a network, which does something."""
    torch.manual_seed(2)
    net, zeros = CONTROLS.get(kind.partition("-")[0], unet_control)(network, **KINDS.get(kind, {}))
    for block in zeros:
        torch.nn.init.normal_(block.weight, std=0.3)
    net.save_pretrained(path)
    return path
