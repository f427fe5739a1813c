"""ControlNets of diffusers': how long and how strongly each acts, what it is shown of its picture, and what it adds to a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from apt_ext.checkpoints.families import Family
from apt_ext.checkpoints.latents import Autoencoder
from apt_ext.core.borders import extend
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.hints import is_drawing, resized_hint, view_hints
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.types import Deal
from apt_ext.demo.samplers import make_sigmas
from apt_ext.options import Schedule

__all__ = ["Control", "SeenHints", "Shown", "acts", "added_to_flux", "added_to_sd3", "added_to_unet", "fit_control", "phase_hints"]


class Control(NamedTuple):
    """A ControlNet.

    Attributes:
        network: `ControlNetModel`, `SD3ControlNetModel` or `FluxControlNetModel`. `weight`: of what it adds.
        start, end: the share of a phase's steps, from 0 to 1, in which it acts.
    """

    network: Any
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


def fit_control(network: Any, of: Any, family: Family) -> None:
    """Make sure that a ControlNet goes with a network; SD3.5's large ones borrow its places.

    Raises:
        ValueError: where it does not, or wants to be shown or told more than a picture.
    """
    config, kind = network.config, type(network).__name__
    if kind != family.control:
        raise ValueError(f"the ControlNet is a {kind}, and {family.label} takes a {family.control}; use one that was made for it")
    width = (config.cross_attention_dim, of.config.cross_attention_dim) if family.network == "unet" else (network.inner_dim, of.inner_dim)
    if width[0] != width[1]:
        raise ValueError(f"the ControlNet is {width[0]} wide and the checkpoint {width[1]}; use one that was made for it")
    if config.get("num_mode") is not None:
        raise ValueError(
            f"the ControlNet knows {config.num_mode} kinds of pictures and has to be told which, which cannot be said here; use one of a single kind"
        )
    if config.get("extra_conditioning_channels"):
        raise ValueError("the ControlNet wants a mask beside its picture; use another one, and --mask where a part of the picture is to stay")
    if config.get("use_pos_embed") is False and network.pos_embed is None:
        network.pos_embed = network._get_pos_embed_from_transformer(of).to(of.device, of.dtype)


class Shown(NamedTuple):
    """What a ControlNet sees in a model call: a row for each of the call's. It acts at noise levels from `low` to `high`."""

    rows: Tensor
    low: float = 0.0
    high: float = math.inf


SeenHints = Callable[[ViewBatch], list[Shown]]
"""The views of a model call -> what each ControlNet sees of them."""


def _in_latents(control: Control) -> bool:
    """Whether a ControlNet takes its picture as a latent: those of SD3, and of Flux all but XLabs's."""
    kind = type(control.network).__name__
    return kind == "SD3ControlNetModel" or (kind == "FluxControlNetModel" and control.network.input_hint_block is None)


def _span(control: Control, levels: Sequence[float]) -> tuple[float, float]:
    """Noise levels between which a ControlNet acts, by the steps of a phase, as diffusers' pipelines count them. `levels`: of its steps, descending."""
    acting = [step for step in range(len(levels)) if step / len(levels) >= control.start and (step + 1) / len(levels) <= control.end]
    if not acting:
        return math.inf, math.inf
    slack = 1e-4  # of rounding
    low = 0.0 if acting[-1] == len(levels) - 1 else levels[acting[-1]] * (1 - slack)
    return low, math.inf if acting[0] == 0 else levels[acting[0]] * (1 + slack)


def phase_hints(
    controls: Sequence[Control], pictures: Sequence[Tensor], setup: PhaseSetup, schedule: Schedule, sigmas: Tensor, autoencoder: Autoencoder, deal: Deal
) -> SeenHints:
    """The ControlNets' pictures for a phase: cut to each local window, shrunk for each dilated view.

    A ControlNet that takes latents sees a window of the picture's latent, as the network does, and of a dilated view the latent of its small picture.

    Args:
        pictures: (1, 3, H, W) in 0..1, one for each. `schedule`: of the job. `sigmas`: (T,), the model's ascending noise levels.
        deal: who encodes.
    """
    factor, device = autoencoder.factor, pictures[0].device
    size = (setup.phase.size.rows * factor, setup.phase.size.columns * factor)
    levels = setup.levels(shortcut_sigmas(make_sigmas(schedule.spacing, schedule.steps, sigmas), schedule.strength))[:-1].tolist()
    whole = None if setup.grid is None else ViewBatch(setup.phase.size, 1, (), setup.grid, (0, setup.grid.views))

    def seen_by(control: Control, picture: Tensor) -> Callable[[ViewBatch], Tensor]:
        drawing = is_drawing(picture)
        hint = resized_hint(picture, size, drawing)
        if not _in_latents(control):
            signed = type(control.network).__name__ == "FluxControlNetModel"  # XLabs's are shown -1..1, and those of UNets 0..1
            return lambda batch: view_hints(hint * 2 - 1 if signed else hint, batch, factor, drawing)
        moved = autoencoder.shift * autoencoder.scale if control.network.config.get("force_zeros_for_pooled_projection") else 0.0  # as InstantX's were trained
        latent = autoencoder.encode(hint * 2 - 1, device, deal) + moved
        small = [] if whole is None else [one[None] for one in view_hints(hint, whole, factor, drawing)]
        views = [view + moved for view in deal(lambda one: autoencoder.encode(one * 2 - 1, device), small)]
        return lambda batch: view_hints(latent, batch, 1) if batch.grid is None else torch.cat(views[slice(*batch.part)])

    cuts = [seen_by(control, picture) for control, picture in zip(controls, pictures, strict=True)]
    spans = [_span(control, levels) for control in controls]
    return lambda batch: [Shown(batch.spread(cut(batch)), *span) for cut, span in zip(cuts, spans, strict=True)]


def acts(hints: Sequence[Shown], sigma: Tensor) -> list[Tensor | None]:
    """What the ControlNets see at a noise level; None for those that do not act there."""
    if all(hint.low == 0 and hint.high == math.inf for hint in hints):
        return [hint.rows for hint in hints]
    level = float(sigma.max())
    return [hint.rows if hint.low <= level <= hint.high else None for hint in hints]


def _sum(made: Sequence[Sequence[Tensor]]) -> list[Tensor] | None:
    """What several ControlNets add at each place, together; None where there is none."""
    return [reduce(torch.add, place) for place in zip(*made, strict=True)] or None


def _acting(controls: Sequence[Control], hints: Sequence[Tensor | None]) -> list[tuple[Control, Tensor]]:
    return [(control, hint) for control, hint in zip(controls, hints, strict=True) if hint is not None] if hints else []


def added_to_unet(controls: Sequence[Control], hints: Sequence[Tensor | None], x: Tensor, t: Tensor, mirrored: tuple[int, int], **words: Any) -> dict[str, Any]:
    """What ControlNets add to a call of a UNet: arguments of its own.

    Args:
        hints: (B, 3, H, W) each. `mirrored`: pixels below and on the right by which `x` goes beyond the view, and the hints do not.
    """
    down, middle = list[list[Tensor]](), list[Tensor]()
    for control, hint in _acting(controls, hints):
        seen = extend(hint, 0, 0, *mirrored, "reflect").to(x)
        blocks, centre = control.network(x, t, controlnet_cond=seen, conditioning_scale=control.weight, return_dict=False, **words)
        down.append(blocks)
        middle.append(centre)
    if not down:
        return {}
    return {"down_block_additional_residuals": _sum(down), "mid_block_additional_residual": reduce(torch.add, middle)}


def added_to_sd3(controls: Sequence[Control], hints: Sequence[Tensor | None], x: Tensor, t: Tensor, blocks: int, context: Tensor, pooled: Tensor) -> Any:
    """What ControlNets add behind each of SD3's blocks; None for nothing.

    Args:
        hints: (B, C, h, w) latents of the view's size. `x`: (B, C, h, w), `t`: (B,) timesteps. `blocks`: of the network.
    """
    made = []
    for control, hint in _acting(controls, hints):
        net = control.network
        (own,) = net(
            hidden_states=x,
            controlnet_cond=extend(hint, 0, 0, x.shape[-2] - hint.shape[-2], x.shape[-1] - hint.shape[-1], "reflect").to(x),
            conditioning_scale=control.weight,
            encoder_hidden_states=None if net.config.joint_attention_dim is None else context,
            pooled_projections=torch.zeros_like(pooled) if net.config.force_zeros_for_pooled_projection else pooled,
            timestep=t,
            return_dict=False,
        )
        made.append([own[int(block / (blocks / len(own)))] for block in range(blocks)])
    return _sum(made)


def added_to_flux(
    controls: Sequence[Control], hints: Sequence[Tensor | None], blocks: tuple[int, int], guidance: Tensor, packed: Tensor, **told: Any
) -> dict[str, Any]:
    """What ControlNets add behind Flux's double and single blocks: arguments of its own.

    Args:
        hints: (B, C, h, w) latents of the view, or, for XLabs's, (B, 3, H, W) pixels. `blocks`: how many there are of either.
        guidance: for those that are told it. `packed`: what the network sees. `told`: and is told besides.
    """
    made: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for control, hint in _acting(controls, hints):
        net, factor = control.network, 1 if _in_latents(control) else 8
        unit = 2 * factor
        seen = extend(hint, 0, 0, -hint.shape[-2] % unit, -hint.shape[-1] % unit, "reflect").to(packed)
        if factor == 1:
            seen = rearrange(seen, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2)
        own = net(
            hidden_states=packed,
            controlnet_cond=seen,
            conditioning_scale=control.weight,
            guidance=guidance if net.config.guidance_embeds else None,
            return_dict=False,
            **told,
        )
        for sums, samples, count, repeat in zip(made, own, blocks, (factor != 1, False), strict=True):
            if samples is not None:
                each = math.ceil(count / len(samples))
                sums.append([samples[block % len(samples) if repeat else block // each] for block in range(count)])
    return {"controlnet_block_samples": _sum(made[0]), "controlnet_single_block_samples": _sum(made[1])}
