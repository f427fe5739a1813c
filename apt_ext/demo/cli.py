"""The commands: demo, upscale, generate, plan, scene, samples."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from apt_ext import __version__
from apt_ext.core.cost import demofusion_views, phase_views
from apt_ext.core.schedule import discrete_timestep
from apt_ext.core.upscale import ModelFacts, PhaseReport
from apt_ext.demo.arguments import DEFAULT_PRESET, job_from, make_parser, variants
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.job import (
    Job,
    Outcome,
    Source,
    check_output,
    from_picture,
    from_style,
    lay_out,
    peak_memory_mib,
    plan_job,
    run_job,
    seconds_per_view,
    show,
)
from apt_ext.demo.model import NATIVE, LeavesModel, alphas_cumprod, choose_device, load_model
from apt_ext.demo.output import Output
from apt_ext.demo.pictures import Picture, load_picture
from apt_ext.demo.samplers import make_sigmas
from apt_ext.demo.sheet import comparison_sheet, samples_sheet, stacked
from apt_ext.demo.world import make_scene, render

__all__ = ["main"]

LIMITS = (
    "The embedded model is small: it sharpens edges and adds texture of the kind that it was trained on, but it does not know what your picture shows. "
    "For real detail use the method with Stable Diffusion."
)
EXAMPLE = Path(__file__).parent / "example.webp"  # a tawny owl by Lepale, public domain; see bench/photos/README.md
DEMO_SCALE = 4  # of the examples, whose true large versions are that much larger than their inputs
DEMO_STYLE, DEMO_SEED, DEMO_EXTENT = "pebbles", 20, (1.5, 1.0)  # the extent in views, across and down
FAMILIES = {"leaves": (NATIVE[0], FACTOR, 1), "sd1": (64, 8, 8), "sd2": (96, 8, 8), "sdxl": (128, 8, 8)}  # native latent side, pixels per latent, multiple


def _text(job: Job) -> dict[str, str]:
    """What is written into a picture file, so that the job can be repeated from it."""
    values = asdict(job)
    flat = {name: value for name, value in values.items() if name != "options"} | values["options"]
    return {"parameters": ", ".join(f"APT {name.replace('_', ' ')}: {value}" for name, value in flat.items()), "Software": f"apt_ext {__version__}"}


def _with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return image
    image = image.copy()
    image.putalpha(alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image


def _announce(model: LeavesModel, source: Source, jobs: Mapping[str, Job], title: str = "") -> None:
    """Say what will be done and about how long it takes, before it begins."""
    for label, job in jobs.items():
        phases, costs, _ = plan_job(model, source, job)
        views = sum(cost.evaluations for cost in costs)
        sizes = ", ".join(f"{phase.size[1] * FACTOR}x{phase.size[0] * FACTOR}" for phase in phases)
        seconds = views * seconds_per_view(model, job)
        took = f"about {seconds / 60:.0f} minutes" if seconds > 90 else f"about {seconds:.0f} seconds"
        print(f"{title}{label}: {source.pixels[0]}x{source.pixels[1]} px to {sizes}, {views} window evaluations, {took}", file=sys.stderr)
        if job.options.method == "accdiffusion":
            print("accdiffusion: with window interaction; words per window do not apply, since the embedded model has no prompts", file=sys.stderr)


def _report(job: Job, source: Source, outcome: Outcome) -> dict[str, Any]:
    return {
        "settings": asdict(job),
        "seed": job.seed,
        "input": list(source.pixels),
        "base": [source.base.shape[-1] * FACTOR, source.base.shape[-2] * FACTOR],
        "phases": outcome.phases,
        "window_evaluations": sum(phase["window_evaluations"] for phase in outcome.phases),
        "seconds": round(outcome.seconds, 2),
    }


def _machine(model: LeavesModel) -> dict[str, Any]:
    memory = peak_memory_mib(model.device)
    versions = {"apt_ext": __version__, "torch": torch.__version__, "device": str(model.device)}
    return {"versions": versions, "peak_memory_mib": None if memory is None else round(memory)}


def _run(
    output: Output,
    model: LeavesModel,
    source: Source,
    job: Job,
    name: str,
    alpha: Image.Image | None,
    *,
    title: str = "",
    quiet: bool = False,
    keep: bool = False,
) -> tuple[Outcome, Image.Image, Path]:
    """One job with its pictures: each phase is on disk as soon as it is finished, until the result is."""
    phases: list[Path] = []

    def save_phase(report: PhaseReport, count: int) -> None:
        if report.phase.number < count:
            image = show(model, source, report.latent, report.phase.size[1] * FACTOR / source.covered[0])
            phases.append(output.picture(f"{name}_phase{report.phase.number}of{count}", _with_alpha(image, alpha), _text(job)))

    outcome = run_job(model, source, job, title=title, quiet=quiet, on_finished=save_phase)
    image = show(model, source, outcome.latent, job.scale, job.options.colour_fix)
    path = output.picture(name, _with_alpha(image, alpha), _text(job))
    for phase in [] if keep else phases:
        output.remove(phase)
    return outcome, image, path


def _enlarge(args: argparse.Namespace, output: Output, model: LeavesModel, source: Source, job: Job, stem: str, alpha: Image.Image | None) -> None:
    _announce(model, source, {job.options.method: job})
    name = output.free_stem(f"{stem}_{job.options.method}{'_apt' if args.apt else ''}_{job.scale:g}x")
    outcome, _, path = _run(output, model, source, job, name, alpha, quiet=args.quiet, keep=args.keep_phases)
    output.report(name, _report(job, source, outcome) | _machine(model))
    print(f"{path} ({outcome.seconds:.0f} s)")


def command_upscale(args: argparse.Namespace, output: Output) -> None:
    job = job_from(args, "photo")
    picture = load_picture(args.image)
    check_output(picture.rgb.size, job.scale)
    model = load_model(device=choose_device(args.device))
    model.style_index(job.style)
    print(LIMITS, file=sys.stderr)
    _enlarge(args, output, model, from_picture(model, picture.rgb), job, Path(args.image).stem, picture.alpha)


def command_generate(args: argparse.Namespace, output: Output) -> None:
    job = job_from(args, "autumn")
    model = load_model(device=choose_device(args.device))
    print(LIMITS, file=sys.stderr)
    source = from_style(model, job)
    plan_job(model, source, job)
    stem = output.free_stem(f"{job.style}_{job.seed}")
    output.picture(stem, show(model, source, source.latent, 1.0), _text(job))
    _enlarge(args, output, model, source, job, stem, None)


class Subject(NamedTuple):
    """A picture that the demo enlarges, its large version where that is known, and the style to guide towards."""

    name: str
    picture: Picture
    truth: Image.Image | None
    style: str


def _examples() -> list[Subject]:
    """A photograph, shrunk from a larger one, and a scene of the model's own world."""
    large = load_picture(EXAMPLE).rgb
    small = large.resize((large.width // DEMO_SCALE, large.height // DEMO_SCALE), Image.Resampling.BOX)
    scene, region, width = make_scene(DEMO_STYLE, DEMO_SEED, extent=max(DEMO_EXTENT)), (0.0, 0.0, *DEMO_EXTENT), round(64 * DEMO_EXTENT[0])
    rendered = [Image.fromarray(render(scene, width * k, region)) for k in (1, DEMO_SCALE)]
    return [Subject("owl", Picture(small, None), large, "photo"), Subject("scene", Picture(rendered[0], None), rendered[1], DEMO_STYLE)]


def _shrink(picture: Picture) -> Picture:
    """A picture larger than the model composes at once, brought to that size, so that the demo takes seconds."""
    width, height = picture.rgb.size
    ratio = math.sqrt(DEMO_EXTENT[0] * DEMO_EXTENT[1] * 64 * 64 / (width * height))
    if ratio >= 1:
        return picture
    size = (max(16, round(width * ratio)), max(16, round(height * ratio)))
    print(f"apt_ext: the demo shrinks {width}x{height} px to {size[0]}x{size[1]} first; --no-shrink takes the picture as it is", file=sys.stderr)
    alpha = picture.alpha and picture.alpha.resize(size, Image.Resampling.LANCZOS)
    return Picture(picture.rgb.resize(size, Image.Resampling.LANCZOS), alpha)


def _agreement(large: Image.Image, small: Image.Image) -> float:
    """PSNR in dB between the shrunken result and the picture it came from."""
    a = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.float64)
    return float(10 * np.log10(255**2 / (float(np.mean((a - np.asarray(small, np.float64)) ** 2)) + 1e-9)))


def command_demo(args: argparse.Namespace, output: Output) -> None:
    job, preset = job_from(args, "photo"), args.preset or DEFAULT_PRESET
    if args.image is None:
        if job.scale != DEMO_SCALE:
            raise ValueError(f"scale {job.scale:g} is not the examples'; give a picture of your own with it, or leave it out ({DEMO_SCALE})")
        subjects, stem = _examples(), "demo"
    else:
        picture, stem = load_picture(args.image), Path(args.image).stem
        subjects = [Subject(stem, _shrink(picture) if args.shrink else picture, None, "photo")]
    model = load_model(device=choose_device(args.device))
    model.style_index(job.style)
    print(LIMITS, file=sys.stderr)
    sheets: list[Image.Image] = []
    made: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        small, alpha = subject.picture
        check_output(small.size, job.scale)
        source = from_picture(model, small)
        jobs = variants(dataclasses.replace(job, style=args.style or subject.style), preset, args.published)
        _announce(model, source, jobs, f"{subject.name}, ")
        size = (round(small.width * job.scale), round(small.height * job.scale))
        shown = {"input": small.resize(size, Image.Resampling.NEAREST), "Lanczos": small.resize(size, Image.Resampling.LANCZOS)}
        for label, each in jobs.items():
            name = f"{subject.name}_{label.lower().replace(' ', '_')}"
            outcome, shown[label], path = _run(output, model, source, each, name, alpha, title=f"{subject.name}, {label} ", quiet=args.quiet)
            agreement = round(_agreement(shown[label], small), 2)
            made[f"{subject.name}, {label}"] = {**_report(each, source, outcome), "file": path.name, "agreement_with_input_db": agreement}
        if subject.truth is not None:
            shown[f"true {job.scale:g}x"] = subject.truth
            output.picture(f"{subject.name}_true", subject.truth)
        output.picture(f"{subject.name}_input", small)
        sheets.append(comparison_sheet(list(shown.items())))
    sheet = output.picture(f"{stem}_sheet", stacked(sheets))
    report = output.report(f"{stem}_report", {"results": made} | _machine(model))
    for label, facts in made.items():
        print(f"{label:24} {facts['window_evaluations']:6} window evaluations {facts['seconds']:7.1f} s   {output.folder / facts['file']}")
    print(f"sheet:  {sheet}\nreport: {report}")


def command_plan(args: argparse.Namespace) -> None:
    job = job_from(args, "photo")
    sides = re.fullmatch(r"(\d+)[xX](\d+)", args.size)
    if not sides or not all(16 <= int(side) <= 65536 for side in sides.groups()):
        raise ValueError(f"size {args.size!r} is not a size such as 1024x1024 with sides from 16 to 65536 pixels")
    if args.model not in FAMILIES:
        raise ValueError(f"model {args.model!r} does not exist; use one of {', '.join(FAMILIES)}")
    native, factor, multiple = FAMILIES[args.model]
    sigmas = ((1 - alphas_cumprod()) / alphas_cumprod()) ** 0.5
    facts = ModelFacts((native, native), multiple, float(sigmas[-1]), discrete_timestep(sigmas))
    width, height = (int(side) for side in sides.groups())
    check_output((width, height), job.scale, most=65536)
    size = (-(-height // factor), -(-width // factor))
    phases, costs, schedule = lay_out(facts, sigmas, size, job)
    rows: list[dict[str, Any]] = [
        {"size": [cost.phase.size[1] * factor, cost.phase.size[0] * factor], "scale": round(cost.phase.scale, 4), "steps": cost.steps}
        | {"windows": max(local for local, _ in each), "dilated_views": max(dilated for _, dilated in each)}
        | {"local": cost.local, "dilated": cost.dilated}
        for cost, each in ((cost, phase_views(cost.phase, job.options, facts, schedule, 1, job.seed)) for cost in costs)
    ]
    # The published method's steps are those of the same schedule with one model call each, as its own sampler makes.
    reference = demofusion_views(size, phases[-1].size, job.options, facts, make_sigmas("normal", 50, sigmas), 1, job.seed)
    total = sum(cost.evaluations for cost in costs)
    if args.json:
        print(json.dumps({"settings": asdict(job), "phases": rows, "window_evaluations": total, "demofusion_published": reference}, indent=1))
        return
    for number, row in enumerate(rows, 1):
        print(f"phase {number}: {row['size'][0]}x{row['size'][1]} px, {row['steps']} steps, {row['local']} local + {row['dilated']} dilated windows")
    print(f"total: {total} window evaluations, {100 * total / reference:.0f} % of the {reference} of DemoFusion as published (50 steps)")


def command_samples(args: argparse.Namespace, output: Output) -> None:
    if not 1 <= args.count <= 64:
        raise ValueError(f"count {args.count} is out of range; use 1 to 64")
    job = Job(style="autumn", sampler="dpmpp_2m", schedule="karras", seed=args.seed, guidance=args.guidance)
    model = load_model(device=choose_device(args.device))
    print(output.picture("samples", samples_sheet(model, job, args.count)))


def command_scene(args: argparse.Namespace, output: Output) -> None:
    if not 16 <= args.size <= 4096:
        raise ValueError(f"size {args.size} is out of range; use 16 to 4096")
    if args.seed < 0:
        raise ValueError(f"seed {args.seed} is out of range; use 0 or more")
    picture = Image.fromarray(render(make_scene(args.style, args.seed), args.size))
    print(output.picture(f"{args.style}_{args.seed}_{args.size}", picture))


COMMANDS: dict[str, Callable[[argparse.Namespace, Output], None]] = {
    "demo": command_demo,
    "upscale": command_upscale,
    "generate": command_generate,
    "scene": command_scene,
    "samples": command_samples,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for input that cannot be used, 130 for Ctrl-C."""
    args = make_parser().parse_args(argv)
    output: Output | None = None
    try:
        if args.command == "plan":
            command_plan(args)
        else:
            output = Output(args.out)
            COMMANDS[args.command](args, output)
        return 0
    except ValueError as error:
        said, status = str(error), 2
    except (OSError, ImportError) as error:
        said, status = f"{error}; check the disk and the installation, then try again", 2
    except (MemoryError, torch.OutOfMemoryError):
        said, status = "the memory is used up; use a smaller --window-batch, scale or picture", 2
    except KeyboardInterrupt:
        written = output.written if output else []
        said, status = f"stopped; {f'the last finished picture is {written[-1]}' if written else 'nothing was finished, so nothing was written'}", 130
    if output is not None and not output.written:
        output.discard_if_new()
    print(f"apt_ext: {said}", file=sys.stderr)
    return status
