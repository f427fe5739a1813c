"""The commands: demo, upscale, generate, plan, scene, samples."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from apt_ext import __version__
from apt_ext.core.cost import job_cost
from apt_ext.core.evaluations import evaluations_per_step
from apt_ext.core.phases import base_size, plan_phases
from apt_ext.core.schedule import discrete_timestep
from apt_ext.core.upscale import ModelFacts, PhaseReport
from apt_ext.demo.arguments import job_from, make_parser, variants
from apt_ext.demo.autoencoder import FACTOR
from apt_ext.demo.job import Job, Outcome, Source, from_picture, from_style, peak_memory_mib, plan_job, run_job, seconds_per_view, settings_of, show
from apt_ext.demo.model import LeavesModel, alphas_cumprod, load_model
from apt_ext.demo.pictures import Picture, check_folder, load_picture, save_png, write_whole
from apt_ext.demo.samplers import make_sigmas
from apt_ext.demo.sheet import comparison_sheet, samples_sheet
from apt_ext.demo.world import make_scene, render

__all__ = ["main"]

LIMITS = (
    "The embedded model is small and was trained on procedural leaves and ten photographs: it adds texture of that kind, "
    "it does not know what your picture shows. It demonstrates the method; for real detail use the method with Stable Diffusion."
)
DEMO_STYLE, DEMO_SEED, DEMO_EXTENT = "autumn", 20, (1.5, 1.0)  # the extent in views, across and down
FAMILIES = {"leaves": (16, 4, 4), "sd1": (64, 8, 8), "sd2": (96, 8, 8), "sdxl": (128, 8, 8)}  # native latent side, pixels per latent, multiple


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None


def _text(job: Job) -> dict[str, str]:
    """What is written into a picture file, so that the job can be repeated from it."""
    flat = {k: v for k, v in settings_of(job).items() if k != "options"} | settings_of(job)["options"]
    return {"parameters": ", ".join(f"APT {name.replace('_', ' ')}: {value}" for name, value in flat.items()), "Software": f"apt_ext {__version__}"}


def _with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is not None:
        image.putalpha(alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image


def _announce(model: LeavesModel, source: Source, jobs: Sequence[Job]) -> None:
    """Say what will be done and about how long it takes, before it begins."""
    for job in jobs:
        phases, costs, _ = plan_job(model, source, job)
        views = sum(cost.evaluations for cost in costs)
        sizes = ", ".join(f"{phase.size[1] * FACTOR}x{phase.size[0] * FACTOR}" for phase in phases)
        minutes = views * seconds_per_view(model, job) / 60
        took = f"about {minutes:.0f} minutes" if minutes > 1.5 else f"about {60 * minutes:.0f} seconds"
        print(f"{job.options.method}: {source.pixels[0]}x{source.pixels[1]} px to {sizes}, {views} window evaluations, {took}", file=sys.stderr)


def _report(job: Job, source: Source, outcome: Outcome) -> dict[str, Any]:
    return {
        "settings": settings_of(job),
        "seed": job.seed,
        "input": list(source.pixels),
        "base": [source.base.shape[-1] * FACTOR, source.base.shape[-2] * FACTOR],
        "phases": outcome.phases,
        "window_evaluations": sum(phase["window_evaluations"] for phase in outcome.phases),
        "seconds": round(outcome.seconds, 2),
    }


def _machine(model: LeavesModel) -> dict[str, Any]:
    memory = peak_memory_mib()
    versions = {"apt_ext": __version__, "torch": torch.__version__, "device": str(model.device)}
    return {"versions": versions, "peak_memory_mib": None if memory is None else round(memory)}


def _write_json(path: Path, report: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(report, indent=1) + "\n").encode())


def _enlarge(args: argparse.Namespace, model: LeavesModel, source: Source, job: Job, stem: str, alpha: Image.Image | None) -> int:
    """One job with its files: the phases as they are finished, then the result and its report."""
    _announce(model, source, [job])
    name = f"{stem}_{job.options.method}{'_apt' if args.apt else ''}_{job.scale:g}x"
    kept: list[Path] = []

    def save_phase(report: PhaseReport, count: int) -> None:
        if report.phase.number == count:
            return
        scale = report.phase.size[1] * FACTOR / source.covered[0]
        path = args.out / f"{name}_phase{report.phase.number}of{count}.png"
        save_png(_with_alpha(show(model, source, report.latent, scale), alpha), path, _text(job))
        kept.append(path)

    result = args.out / f"{name}.png"
    try:
        outcome = run_job(model, source, job, quiet=args.quiet, on_finished=save_phase)
        save_png(_with_alpha(show(model, source, outcome.latent, job.scale), alpha), result, _text(job))
    except KeyboardInterrupt:
        left = f"the last finished phase is {kept[-1]}" if kept else "no phase was finished, so nothing was written"
        print(f"apt_ext: stopped; {left}", file=sys.stderr)
        return 130
    _write_json(args.out / f"{name}.json", _report(job, source, outcome) | _machine(model))
    for path in [] if args.keep_phases else kept:
        path.unlink()
    print(f"{result} ({outcome.seconds:.0f} s)")
    return 0


def command_upscale(args: argparse.Namespace) -> int:
    job = job_from(args, "photo")
    picture = load_picture(args.image)
    check_folder(args.out)
    model = load_model(device=_device(args.device))
    model.style_index(job.style)
    print(LIMITS, file=sys.stderr)
    return _enlarge(args, model, from_picture(model, picture.rgb), job, Path(args.image).stem, picture.alpha)


def command_generate(args: argparse.Namespace) -> int:
    job = job_from(args, "autumn")
    check_folder(args.out)
    model = load_model(device=_device(args.device))
    source = from_style(model, job)
    stem = f"{job.style}_{job.seed}"
    plan_job(model, source, job)
    save_png(show(model, source, source.latent, 1.0), args.out / f"{stem}.png", _text(job))
    return _enlarge(args, model, source, job, stem, None)


def _shrink(picture: Picture) -> Picture:
    """A picture larger than the model composes at once, brought to that size: three methods on the whole of it would take hours."""
    width, height = picture.rgb.size
    ratio = math.sqrt(DEMO_EXTENT[0] * DEMO_EXTENT[1] * 64 * 64 / (width * height))
    if ratio >= 1:
        return picture
    size = (max(16, round(width * ratio)), max(16, round(height * ratio)))
    print(f"apt_ext demo: {width}x{height} px shrunk to {size[0]}x{size[1]}; to enlarge the picture itself, use the command upscale", file=sys.stderr)
    alpha = picture.alpha and picture.alpha.resize(size, Image.Resampling.LANCZOS)
    return Picture(picture.rgb.resize(size, Image.Resampling.LANCZOS), alpha)


def _agreement(large: Image.Image, small: Image.Image) -> float:
    """PSNR in dB between the shrunken result and the picture it came from."""
    a = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.float64)
    return float(10 * np.log10(255**2 / (float(np.mean((a - np.asarray(small, np.float64)) ** 2)) + 1e-9)))


def command_demo(args: argparse.Namespace) -> int:
    truth: Image.Image | None = None
    if args.image is None:
        scene = make_scene(DEMO_STYLE, DEMO_SEED, extent=max(DEMO_EXTENT))
        region, width = (0.0, 0.0, *DEMO_EXTENT), round(64 * DEMO_EXTENT[0])
        picture = Picture(Image.fromarray(render(scene, width, region)), None)
        job = job_from(args, DEMO_STYLE)
        truth = Image.fromarray(render(scene, round(width * job.scale), region))
        stem = "scene"
    else:
        job = job_from(args, "photo")
        picture, stem = _shrink(load_picture(args.image)), Path(args.image).stem
    check_folder(args.out)
    model = load_model(device=_device(args.device))
    model.style_index(job.style)
    source = from_picture(model, picture.rgb)
    print(LIMITS, file=sys.stderr)
    jobs = variants(job)
    _announce(model, source, list(jobs.values()))
    size = (round(picture.rgb.width * job.scale), round(picture.rgb.height * job.scale))
    shown = {"input": picture.rgb.resize(size, Image.Resampling.NEAREST), "bicubic": picture.rgb.resize(size, Image.Resampling.BICUBIC)}
    made: dict[str, dict[str, Any]] = {}
    for label, each in jobs.items():
        try:
            outcome = run_job(model, source, each, title=f"{label} ", quiet=args.quiet)
        except KeyboardInterrupt:
            done = [name for name in jobs if name in shown]
            print(f"apt_ext: stopped; {'finished and written: ' + ', '.join(done) if done else 'nothing was finished'}", file=sys.stderr)
            return 130
        image = show(model, source, outcome.latent, job.scale)
        save_png(_with_alpha(image.copy(), picture.alpha), args.out / f"{stem}_{label.lower()}.png", _text(each))
        shown[label] = image
        made[label] = _report(each, source, outcome) | {"agreement_with_input_db": round(_agreement(image, picture.rgb), 2)}
    if truth is not None:
        shown[f"true {job.scale:g}x"] = truth
        save_png(truth, args.out / f"{stem}_true.png")
    save_png(picture.rgb, args.out / f"{stem}_input.png")
    save_png(comparison_sheet(list(shown.items())), args.out / f"{stem}_sheet.png")
    _write_json(args.out / f"{stem}_report.json", {"methods": made} | _machine(model))
    for label, facts in made.items():
        print(f"{label:15} {facts['window_evaluations']:6} window evaluations {facts['seconds']:7.1f} s")
    print(f"result: {args.out / f'{stem}_apt.png'}\nsheet:  {args.out / f'{stem}_sheet.png'}\nreport: {args.out / f'{stem}_report.json'}")
    return 0


def command_plan(args: argparse.Namespace) -> int:
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
    start = (-(-height // factor), -(-width // factor))
    target = (-(-round(height * job.scale) // factor), -(-round(width * job.scale) // factor))
    phases = plan_phases(base_size(start, facts.window), start, target, job.options.phase_ratios() or job.options.phases)
    schedule = make_sigmas(job.schedule, job.options.steps, sigmas)
    costs = job_cost(phases, job.options, facts, schedule, evaluations_per_step(job.sampler), job.seed)
    rows: list[dict[str, Any]] = [
        {"size": [cost.phase.size[1] * factor, cost.phase.size[0] * factor], "scale": round(cost.phase.scale, 4)}
        | {"steps": cost.steps, "local": cost.local, "dilated": cost.dilated}
        for cost in costs
    ]
    total = sum(c.evaluations for c in costs)
    if args.json:
        print(json.dumps({"phases": rows, "window_evaluations": total}, indent=1))
    else:
        for number, row in enumerate(rows, 1):
            print(f"phase {number}: {row['size'][0]}x{row['size'][1]} px, {row['steps']} steps, {row['local']} local + {row['dilated']} dilated windows")
        print(f"total: {total} window evaluations")
    return 0


def command_samples(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= 64:
        raise ValueError(f"count {args.count} is out of range; use 1 to 64")
    check_folder(args.out)
    model = load_model(device=_device(args.device))
    job = Job(style="autumn", sampler="dpmpp_2m", schedule="karras", seed=args.seed, guidance=args.guidance)
    path = args.out / "samples.png"
    save_png(samples_sheet(model, job, args.count), path)
    print(path)
    return 0


def command_scene(args: argparse.Namespace) -> int:
    if not 16 <= args.size <= 4096:
        raise ValueError(f"size {args.size} is out of range; use 16 to 4096")
    if args.seed < 0:
        raise ValueError(f"seed {args.seed} is out of range; use 0 or more")
    picture = Image.fromarray(render(make_scene(args.style, args.seed), args.size))
    check_folder(args.out)
    path = args.out / f"{args.style}_{args.seed}_{args.size}.png"
    save_png(picture, path)
    print(path)
    return 0


COMMANDS = {
    "demo": command_demo,
    "upscale": command_upscale,
    "generate": command_generate,
    "plan": command_plan,
    "scene": command_scene,
    "samples": command_samples,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for input that cannot be used, 130 for Ctrl-C."""
    args = make_parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args)
    except ValueError as error:
        print(f"apt_ext: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("apt_ext: stopped; nothing was written", file=sys.stderr)
        return 130
