"""The commands: demo, upscale, generate, plan, scene, samples."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.plan import demofusion_views
from apt_ext.core.ranks.launch import Place, joined, own_device, place_of
from apt_ext.core.ranks.ranks import Ranks
from apt_ext.core.ranks.status import RankError, State, caused_by
from apt_ext.core.types import ModelFacts, Size
from apt_ext.demo.arguments import job_from, make_parser
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.checkpoint_arguments import check_checkpoint
from apt_ext.demo.commands import EMBEDDED, Kind, command_generate, command_upscale
from apt_ext.demo.comparing import command_demo
from apt_ext.demo.job import check_output, plan_for
from apt_ext.demo.model import NATIVE, alphas_cumprod, choose_device, load_model
from apt_ext.demo.output import Output, Unwritten
from apt_ext.demo.sheet import samples_sheet
from apt_ext.demo.wanted import Job
from apt_ext.demo.world import make_scene, render

__all__ = ["main"]

# Native latent side, pixels per latent, multiple of the sides; named as in the WebUI's settings.
FAMILIES = {"leaves": (NATIVE[0], FACTOR, 1), "sd1": (64, 8, 8), "sd2": (64, 8, 8), "sd2v": (96, 8, 8), "sdxl": (128, 8, 4)}


def command_plan(args: argparse.Namespace) -> None:
    job = job_from(args, "photo")
    sides = re.fullmatch(r"(\d+)[xX](\d+)", args.size)
    if not sides or not all(16 <= int(side) <= 65536 for side in sides.groups()):
        raise ValueError(f"size {args.size!r} is not a size such as 1024x1024 with sides from 16 to 65536 pixels")
    if args.model not in FAMILIES:
        raise ValueError(f"model {args.model!r} does not exist; use one of {', '.join(FAMILIES)}")
    native, factor, multiple = FAMILIES[args.model]
    sigmas = ((1 - alphas_cumprod()) / alphas_cumprod()) ** 0.5
    facts = ModelFacts(Size(native, native), multiple, float(sigmas[-1]), discrete_timestep(sigmas), factor)
    width, height = (int(side) for side in sides.groups())
    check_output((width, height), job.scale, most=65536)
    size = (-(-height // factor), -(-width // factor))
    plan = plan_for(facts, sigmas, size, job)
    rows: list[dict[str, Any]] = [
        {"size": [phase.size.columns * factor, phase.size.rows * factor], "scale": round(phase.scale, 4), "steps": plan.steps}
        | {"windows": max(local // calls for (local, _), calls in zip(views, plan.calls, strict=True))}
        | {"dilated_views": max(dilated // calls for (_, dilated), calls in zip(views, plan.calls, strict=True))}
        | {"local": total.local, "dilated": total.dilated}
        for phase, views, total in zip(plan.phases, plan.views, plan.totals, strict=True)
    ]
    reference = demofusion_views(size, plan.phases[-1].size, facts)
    total = plan.evaluations
    if args.json:
        print(json.dumps({"settings": asdict(job), "phases": rows, "window_evaluations": total, "demofusion_published": reference}, indent=1))
        return
    for number, row in enumerate(rows, 1):
        print(f"phase {number}: {row['size'][0]}x{row['size'][1]} px, {row['steps']} steps, {row['local']} local + {row['dilated']} dilated windows")
    print(f"total: {total} window evaluations, {100 * total / reference:.0f} % of the {reference} of DemoFusion as published (50 steps)")


def command_samples(args: argparse.Namespace, output: Output) -> None:
    if not 1 <= args.count <= 64:
        raise ValueError(f"count {args.count} is out of range; use 1 to 64")
    job = Job(style="autumn", seed=args.seed, guidance=args.guidance)
    model = load_model(device=choose_device(args.device))
    print(output.picture("samples", samples_sheet(model, job, args.count)))


def command_scene(args: argparse.Namespace, output: Output) -> None:
    if not 16 <= args.size <= 4096:
        raise ValueError(f"size {args.size} is out of range; use 16 to 4096")
    if args.seed < 0:
        raise ValueError(f"seed {args.seed} is out of range; use 0 or more")
    picture = Image.fromarray(render(make_scene(args.style, args.seed), args.size))
    print(output.picture(f"{args.style}_{args.seed}_{args.size}", picture))


def kind_of(args: argparse.Namespace) -> Kind:
    """The embedded model, or the checkpoint that the arguments name."""
    if not check_checkpoint(args):
        return EMBEDDED
    from apt_ext.checkpoints.command import CHECKPOINT  # it is large, and an extra

    return CHECKPOINT


COMMANDS: dict[str, Callable[[argparse.Namespace, Output], None]] = {
    "demo": command_demo,
    "upscale": lambda args, output: command_upscale(args, output, kind_of(args)),
    "generate": lambda args, output: command_generate(args, output, kind_of(args)),
    "scene": command_scene,
    "samples": command_samples,
}
ONE_RESULT = ("upscale", "generate")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for input that cannot be used, 130 for Ctrl-C, 1 where another process failed or is gone.

    Under torchrun every process runs it; the first one writes and talks.
    """
    try:
        place = place_of(os.environ)
        with _only_the_first_talks(place), joined(place) as ranks:
            return _command(argv, place, ranks)
    except ValueError as error:  # the processes did not find each other
        print(f"apt_ext: {error}", file=sys.stderr)
        return 2


@contextmanager
def _only_the_first_talks(place: Place) -> Iterator[None]:
    if place.rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _command(argv: list[str] | None, place: Place, ranks: Ranks) -> int:
    args = make_parser().parse_args(argv)
    args.ranks = ranks
    output: Output | None = None
    try:
        with ranks.together():
            if "device" in args:
                args.device = own_device(args.device, place)
            if args.command == "plan":
                command_plan(args)
            else:
                writes = ranks.first or vars(args).get("share") == "pictures"
                output = Output(args.out) if writes else Unwritten(args.out)
                if output.file and args.command not in ONE_RESULT:
                    raise ValueError(f"{str(args.out)!r} is a file's name and {args.command} writes several; use a folder for -o")
                COMMANDS[args.command](args, output)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        ranks.held = True  # a launcher ends all processes when one has ended; its signal must not cut the sentence off
        said, status = _said(error, output.written if output else [], ranks)
    if output is not None and not output.written:
        output.discard_if_new()
    print(f"apt_ext: {said}", file=sys.stderr)
    return status


def _said(error: BaseException, written: list[Path], ranks: Ranks) -> tuple[str, int]:
    """The sentence and the exit status for what ended a command; what nobody foresaw is raised, where there are no others to tell."""
    state, reason = caused_by(error)
    finished = f"the last finished picture is {written[-1]}" if written else "nothing was finished, so nothing was written"
    if isinstance(error, KeyboardInterrupt):
        return f"stopped; {finished}", 130
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, (OSError, ImportError)):
        return f"{error}; check the disk and the installation, then try again", 2
    if state == State.MEMORY:
        return f"the memory is used up; use a smaller --window-batch, scale or picture; {finished}", 2
    if ranks.count == 1:
        raise error
    return f"{error if isinstance(error, RankError) else f'process {ranks.rank + 1} of {ranks.count} failed ({reason})'}; {finished}", 1
