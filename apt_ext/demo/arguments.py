"""The command line's arguments; every setting of `Options` becomes one."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from apt_ext import __version__
from apt_ext.core.clock import CALLS_PER_STEP, FREE_SAMPLERS
from apt_ext.demo.checkpoint_arguments import add_checkpoint
from apt_ext.demo.wanted import Job
from apt_ext.options import PRESETS, PUBLISHED_WINDOWS, Options, Preset, Schedule, Setting, preset_named, published, settings

__all__ = ["DEFAULT_PRESET", "job_from", "make_parser", "variants", "wanted_from"]

OF_PROMPTS = ("regions",)  # which the embedded model has not
APT_SETTINGS = ("matching", "gamma", "strength")
DEFAULT_PRESET = "Balanced"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.split()[0]}: {message}\n")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


_number.__name__ = "number"


def _add_settings(parser: argparse.ArgumentParser, switch: bool) -> None:
    group = parser.add_argument_group("settings of the method")
    presets = ", ".join(name.lower() for name in PRESETS)
    group.add_argument("--preset", metavar="X", help=f"settings and sampler that go together ({presets}); {DEFAULT_PRESET.lower()}")
    if switch:
        group.add_argument("--apt", action=argparse.BooleanOptionalAction, default=True, help="APT on, or the base method as published")
    for prefix, own in (("schedule", PRESETS[DEFAULT_PRESET].schedule), ("option", PRESETS[DEFAULT_PRESET].options)):
        for name, setting in settings(type(own)).items():
            if name in OF_PROMPTS:
                continue
            default = getattr(own, name)
            flags = (f"--{name.replace('_', '-')}", *({"strength": ("--shortcut",)}.get(name, ())))
            kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            if not isinstance(default, bool):
                kind = {"type": {int: int, float: _number}.get(type(default), str), "metavar": "X"}
            group.add_argument(*flags, dest=f"{prefix}_{name}", default=argparse.SUPPRESS, help=f"{setting.help}{_extent(name, setting)}; {default}", **kind)


def _extent(name: str, setting: Setting) -> str:
    if name == "sampler":
        return f" ({', '.join([*CALLS_PER_STEP, *FREE_SAMPLERS])})"
    if name == "upscaler":
        return f" ({', '.join(setting.known)}, or a model file that spandrel reads)"
    if setting.choices:
        return f" ({', '.join(setting.choices)})"
    return f" ({setting.least} to {setting.most})" if setting.least is not None else ""


MAKING = 1.5  # guidance of pictures that are made from nothing; one that is enlarged has its style, and guidance changes nothing but the cost


def _add_job(parser: argparse.ArgumentParser, style: str | None, switch: bool = True, guidance: float = Job.guidance) -> None:
    job = Job()
    other = "; a checkpoint has its own" if switch else ""
    parser.add_argument("--scale", type=_number, default=job.scale, help="how many times larger, along a side; %(default)s")
    parser.add_argument("--guidance", type=_number, help=f"classifier-free guidance; {guidance}{other}")
    parser.add_argument(
        "--guided-above", type=_number, default=job.guided_above, help="noise level below which guidance is left out, which halves the work there; %(default)s"
    )
    parser.add_argument("--style", help=f"style to guide towards (autumn, moss, pebbles, mosaic, photo, or none); {style}")
    parser.add_argument("--seed", type=int, default=job.seed, help="the same seed makes the same file; %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... ; 'auto' takes a GPU where there is one")
    _add_settings(parser, switch)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for the results, or one result's name (.png, .jpg, .webp); %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="apt_ext", description="Enlarge pictures by patch-fusion sampling with Adaptive Path Tracing, on a small embedded model.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="enlarge a picture and lay the result beside a plain enlargement")
    demo.add_argument("image", nargs="?", help="a picture file; without one, a photograph and a scene whose true large versions are known")
    demo.add_argument("--published", action="store_true", help="DemoFusion as published beside it, which takes some ten times as long")
    demo.add_argument("--shrink", action=argparse.BooleanOptionalAction, default=True, help="shrink a picture to the model's size first")
    _add_job(demo, None, switch=False)
    _add_output(demo)

    one = commands.add_parser("upscale", help="enlarge picture files")
    one.add_argument("image", nargs="+", help="picture files, or folders of them")
    one.add_argument(
        "--share", choices=("windows", "pictures"), default="windows", help="what several processes (torchrun) divide: each picture's windows, or pictures"
    )
    _add_job(one, "photo")

    made = commands.add_parser("generate", help="let the model make a picture from a style and a seed, and enlarge it")
    _add_job(made, "autumn", guidance=MAKING)
    for command in (one, made):
        add_checkpoint(command, picture=command is one)
        command.add_argument("--keep-phases", action="store_true", help="keep the pictures of the phases in between")
        _add_output(command)

    plan = commands.add_parser("plan", help="say what a job would do: phases, sizes, windows; no model is run")
    plan.add_argument("size", help="the picture's size in pixels, such as 1024x1024")
    plan.add_argument("--model", default="leaves", help="model family: leaves, sd1, sd2, sd2v (768 px) or sdxl; %(default)s")
    plan.add_argument("--json", action="store_true", help="as JSON")
    _add_job(plan, "photo")

    scene = commands.add_parser("scene", help="render a scene of the model's world at any size")
    scene.add_argument("--style", default="autumn", help="autumn, moss, pebbles or mosaic; %(default)s")
    scene.add_argument("--seed", type=int, default=1)
    scene.add_argument("--size", type=int, default=256, help="side in pixels; %(default)s")
    _add_output(scene)

    samples = commands.add_parser("samples", help="lay pictures that the model makes beside real ones, style by style")
    samples.add_argument("--count", type=int, default=8, help="pictures of each style; %(default)s")
    samples.add_argument("--seed", type=int, default=1)
    samples.add_argument("--guidance", type=_number, default=MAKING)
    samples.add_argument("--device", default="auto")
    _add_output(samples)
    return parser


def job_from(args: argparse.Namespace, style: str) -> Job:
    """The embedded model's job that the arguments describe, guided towards `style` where they name none.

    Raises:
        ValueError: in one sentence, for a value that cannot be used.
    """
    made = wanted_from(args)
    guidance = MAKING if args.guidance is None and args.command == "generate" else Job.guidance if args.guidance is None else args.guidance
    return Job(args.scale, made.options, made.schedule, guidance, args.seed, args.guided_above, args.style or style)


def wanted_from(args: argparse.Namespace) -> Preset:
    """The settings of the method that the arguments describe: a preset's, and what is given besides.

    Raises:
        ValueError: in one sentence, for a value that cannot be used.
    """
    given = {name: value for name, value in vars(args).items() if name.startswith(("option_", "schedule_"))}
    named = {name.partition("_")[2] for name in given}
    apt = getattr(args, "apt", True)
    if not apt and args.preset is not None:
        raise ValueError(f"--no-apt and --preset {args.preset} contradict each other; leave one of them out")
    made = preset_named(args.preset or DEFAULT_PRESET) if apt else _without_apt(given.get("option_method", Options.method))
    made = Preset(_replaced(made.options, given, "option_"), _replaced(made.schedule, given, "schedule_"))
    if not apt:
        clash = [name for name in APT_SETTINGS if name in named and not (name == "strength" and made.options.method == "multidiffusion")]
        if clash:
            raise ValueError(f"--no-apt and --{clash[0]} contradict each other; leave one of them out")
        made = published(made)
    return made


T = TypeVar("T", Options, Schedule)


def _replaced(own: T, given: dict[str, Any], prefix: str) -> T:
    return dataclasses.replace(own, **{name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)})


def _without_apt(method: str) -> Preset:
    """A base method as published. MultiDiffusion begins in the middle of the schedule; the others begin at full noise and go phase by phase."""
    plain = PRESETS["Published"]
    if method != "multidiffusion":
        return Preset(dataclasses.replace(plain.options, method=method), plain.schedule)
    return Preset(Options(method=method, phases="direct", **PUBLISHED_WINDOWS), dataclasses.replace(plain.schedule, strength=Schedule.strength))


def variants(job: Job, preset: str, published_too: bool) -> dict[str, Job]:
    """The jobs that the demo lays side by side, by label."""
    plain = dataclasses.replace(job, options=PRESETS["Published"].options, schedule=PRESETS["Published"].schedule)
    return {**({"DemoFusion": plain} if published_too else {}), f"APT {preset.lower()}": job}
