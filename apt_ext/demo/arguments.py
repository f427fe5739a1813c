"""The command line's arguments; every setting of `Options` becomes one."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from apt_ext import __version__
from apt_ext.core.clock import EVALUATIONS_PER_STEP, FREE_SAMPLERS
from apt_ext.demo.job import Job
from apt_ext.demo.samplers import SCHEDULES
from apt_ext.options import PRESETS, PUBLISHED, PUBLISHED_WINDOWS, Options, Preset, preset_named, published, settings

__all__ = ["DEFAULT_PRESET", "job_from", "make_parser", "variants"]

APT_SETTINGS = ("matching", "gamma", "shortcut")
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


def _number_or(word: str) -> Any:
    def parse(text: str) -> float | str:
        return text if text == word else _number(text)

    parse.__name__ = f"number or {word!r}"
    return parse


def _add_options(parser: argparse.ArgumentParser, switch: bool) -> None:
    group = parser.add_argument_group("settings of the method")
    presets = ", ".join(name.lower() for name in PRESETS)
    group.add_argument("--preset", metavar="X", help=f"settings and sampler that go together ({presets}); {DEFAULT_PRESET.lower()}")
    own = PRESETS[DEFAULT_PRESET].options
    if switch:
        group.add_argument("--apt", action=argparse.BooleanOptionalAction, default=True, help="APT on, or the base method as published")
    for name, field in settings().items():
        limits, flag = field.metadata, f"--{name.replace('_', '-')}"
        names = (flag, "--strength") if name == "shortcut" else (flag,)
        shown = f"{limits['help']}{_extent(limits)}; {own.get(name, field.default)}"
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if isinstance(field.default, bool) else {"type": _kind(field), "metavar": "X"}
        group.add_argument(*names, dest=f"option_{name}", default=argparse.SUPPRESS, help=shown, **kind)


def _kind(field: dataclasses.Field[Any]) -> Any:
    if "word" in field.metadata:
        return _number_or(field.metadata["word"])
    return {int: int, float: _number}.get(type(field.default), str)


def _extent(limits: Mapping[str, Any]) -> str:
    if "choices" in limits:
        return f" ({', '.join(limits['choices'])})"
    if "known" in limits:
        return f" ({', '.join(limits['known'])}, or a model file that spandrel reads)"
    return f" ({limits['least']} to {limits['most']})" if "least" in limits else ""


MAKING = 1.5  # guidance of pictures that are made from nothing; one that is enlarged has its style, and guidance changes nothing but the cost


def _add_job(parser: argparse.ArgumentParser, style: str | None, switch: bool = True, guidance: float = Job.guidance) -> None:
    job = Job()
    parser.add_argument("--scale", type=_number, default=job.scale, help="how many times larger, along a side; %(default)s")
    parser.add_argument("--sampler", help=f"one of k-diffusion's {', '.join([*EVALUATIONS_PER_STEP, *FREE_SAMPLERS])}; the preset's")
    parser.add_argument("--schedule", help=f"noise schedule, one of {', '.join(SCHEDULES)}; the preset's")
    parser.add_argument("--guidance", type=_number, default=guidance, help="classifier-free guidance; %(default)s")
    parser.add_argument(
        "--guided-above", type=_number, default=job.guided_above, help="noise level below which guidance is left out, which halves the work there; %(default)s"
    )
    parser.add_argument("--style", default=style, help="style to guide towards (autumn, moss, pebbles, mosaic, photo, or none); %(default)s")
    parser.add_argument("--seed", type=int, default=job.seed, help="the same seed makes the same file; %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... ; 'auto' takes a GPU where there is one")
    _add_options(parser, switch)


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
    _add_job(one, "photo")

    made = commands.add_parser("generate", help="let the model make a picture from a style and a seed, and enlarge it")
    _add_job(made, "autumn", guidance=MAKING)
    for command in (one, made):
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
    """The job that the arguments describe.

    Raises:
        ValueError: in one sentence, for a value that cannot be used.
    """
    given = {name.removeprefix("option_"): value for name, value in vars(args).items() if name.startswith("option_")}
    apt = getattr(args, "apt", True)
    if not apt and args.preset is not None:
        raise ValueError(f"--no-apt and --preset {args.preset} contradict each other; leave one of them out")
    preset = preset_named(args.preset or DEFAULT_PRESET) if apt else _without_apt(given.get("method", Options.method))
    options = Options(**{**preset.options, **given})
    if not apt:
        clash = [name for name in APT_SETTINGS if name in given and not (name == "shortcut" and options.method == "multidiffusion")]
        if clash:
            raise ValueError(f"--no-apt and --{clash[0]} contradict each other; leave one of them out")
        options = published(options)
    sampler, schedule = args.sampler or preset.sampler, args.schedule or preset.schedule
    return Job(args.scale, options, sampler, schedule, args.guidance, args.style or style, args.seed, args.guided_above)


def _without_apt(method: str) -> Preset:
    """A base method as published. MultiDiffusion begins in the middle of the schedule; the others begin at full noise and go phase by phase."""
    own = {"steps": PUBLISHED["steps"], "phases": "direct", **PUBLISHED_WINDOWS} if method == "multidiffusion" else PUBLISHED
    return Preset({"method": method, **own}, sampler="euler", schedule="normal")


def variants(job: Job, preset: str, published_too: bool) -> dict[str, Job]:
    """The jobs that the demo lays side by side, by label."""
    other = preset_named("Published")
    plain = dataclasses.replace(job, options=Options(**other.options), sampler=other.sampler, schedule=other.schedule)
    return {**({"DemoFusion": plain} if published_too else {}), f"APT {preset.lower()}": job}
