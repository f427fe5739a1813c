"""The command line with `--model`: the same commands on a checkpoint of one's own."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ext.checkpoints.families import FAMILIES
from apt_ext.checkpoints.job import WINDOW_BATCH, PromptJob
from apt_ext.checkpoints.model import Checkpoint
from apt_ext.checkpoints.opening import open_checkpoint
from apt_ext.checkpoints.packages import quieten
from apt_ext.core.types import Size
from apt_ext.demo.arguments import wanted_from
from apt_ext.demo.commands import Kind
from apt_ext.demo.model import choose_device
from apt_ext.demo.pictures import load_picture, to_tensor
from apt_ext.demo.upscalers import enlarger
from apt_ext.demo.wanted import Source
from apt_ext.options import beside_mask

__all__ = ["CHECKPOINT", "job_of", "mask_of"]


def job_of(args: argparse.Namespace, style: str = "") -> PromptJob:
    """The job that the arguments describe.

    Raises:
        ValueError: in one sentence, for a value that cannot be used.
    """
    made = wanted_from(args)
    options = made.options if hasattr(args, "option_window_batch") else dataclasses.replace(made.options, window_batch=WINDOW_BATCH)
    if args.region is not None:
        options = dataclasses.replace(options, regions="\n".join(args.region))
    if getattr(args, "mask", None) is not None:
        options = beside_mask(options)
    guidance = FAMILIES[0].guidance if args.guidance is None else args.guidance
    return PromptJob(args.scale, options, made.schedule, guidance, args.seed, args.guided_above, args.prompt or "", args.negative or "")


def _open(args: argparse.Namespace, job: PromptJob) -> tuple[Checkpoint, PromptJob]:
    device = choose_device(args.device)
    enlarger(job.options.upscaler, device)
    for name in [*([args.mask] if getattr(args, "mask", None) else []), *(args.control_image or [])]:
        load_picture(name)
    if len(args.control_image or []) > len(args.control or []):
        raise ValueError(f"{len(args.control_image)} control pictures for {len(args.control or [])} ControlNets are given; name one for each with --control")
    size = _first_size(args)
    quieten()
    model = open_checkpoint(
        args.model,
        device=args.device,
        dtype=args.dtype or "auto",
        offload=args.offload or "none",
        config=args.config,
        vae=args.vae,
        loras=args.lora or (),
        controls=args.control or (),
        native=args.native,
        prediction=args.prediction,
        allow_pickle=bool(args.allow_pickle),
    )
    if size is not None:
        unit = model.factor * model.facts.multiple
        if size[0] % unit or size[1] % unit:
            raise ValueError(f"size {args.size} does not fit this checkpoint; use multiples of {unit} pixels")
        model.first_size = Size(size[1] // model.factor, size[0] // model.factor)
    model.words(job.prompt, job.negative)
    return model, job if args.guidance is not None else dataclasses.replace(job, guidance=model.family.guidance)


def _first_size(args: argparse.Namespace) -> tuple[int, int] | None:
    given = getattr(args, "size", None)
    if given is None:
        return None
    sides = re.fullmatch(r"(\d+)[xX](\d+)", given)
    if not sides or not all(64 <= int(side) <= 4096 for side in sides.groups()):
        raise ValueError(f"size {given!r} is not a size such as 1024x1024 with sides from 64 to 4096 pixels")
    return int(sides[1]), int(sides[2])


def mask_of(picture: Any, source: Source) -> Tensor:
    """(1, 1, H, W) in 0..1 over the source's picture, from the mean of a mask's colours; a mask of another size is brought to it."""
    grey = picture.convert("L").resize(source.pixels)
    mask = torch.from_numpy(np.array(grey, dtype=np.float32) / 255)[None, None]
    width, height = source.covered
    return torch.nn.functional.pad(mask, (0, width - source.pixels[0], 0, height - source.pixels[1]), "replicate")


def _prepare(args: argparse.Namespace, source: Source) -> Source:
    """A source with its mask and control pictures."""
    hints = tuple(to_tensor(load_picture(name).rgb) / 2 + 0.5 for name in args.control_image or ())
    mask = getattr(args, "mask", None)
    return dataclasses.replace(source, mask=None if mask is None else mask_of(load_picture(mask).rgb, source), hints=hints)


def _name(job: PromptJob) -> str:
    words = re.sub(r"[^\w]+", "_", job.prompt).strip("_")[:40] or "picture"
    return f"{words}_{job.seed}"


CHECKPOINT = Kind(job_of, _open, "", _prepare, _name)
