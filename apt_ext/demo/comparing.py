"""The demo: pictures enlarged and laid beside a plain enlargement and, where it is known, the truth."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from apt_ext.demo.arguments import DEFAULT_PRESET, job_from, variants
from apt_ext.demo.commands import EMBEDDED, open_model, say_limits
from apt_ext.demo.enlarging import Order, announce, enlarge_one, machine, report_of
from apt_ext.demo.job import Shown, check_output
from apt_ext.demo.output import Output
from apt_ext.demo.pictures import Picture, load_picture
from apt_ext.demo.sheet import comparison_sheet, stacked
from apt_ext.demo.sources import from_picture
from apt_ext.demo.world import make_scene, render

__all__ = ["command_demo"]

EXAMPLE = Path(__file__).parent / "example.webp"  # a tawny owl by Lepale, public domain; see bench/photos/README.md
DEMO_SCALE = 4  # of the examples, whose true large versions are that much larger than their inputs
DEMO_STYLE, DEMO_SEED, DEMO_EXTENT = "pebbles", 20, (1.5, 1.0)  # the extent in views, across and down


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
    return picture._replace(rgb=picture.rgb.resize(size, Image.Resampling.LANCZOS), alpha=alpha)


def _agreement(large: Image.Image, small: Image.Image) -> float:
    """PSNR in dB between the shrunken result and the picture it came from."""
    a = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.float64)
    return float(10 * np.log10(255**2 / (float(np.mean((a - np.asarray(small, np.float64)) ** 2)) + 1e-9)))


def command_demo(args: argparse.Namespace, output: Output) -> None:
    """Enlarge the examples, or a picture, and lay a sheet.

    Raises:
        ValueError: for what cannot be used.
    """
    job, preset = job_from(args, "photo"), args.preset or DEFAULT_PRESET
    if args.image is None:
        if job.scale != DEMO_SCALE:
            raise ValueError(f"scale {job.scale:g} is not the examples'; give a picture of your own with it, or leave it out ({DEMO_SCALE})")
        subjects, stem = _examples(), "demo"
    else:
        picture, stem = load_picture(args.image), Path(args.image).stem
        subjects = [Subject(stem, _shrink(picture) if args.shrink else picture, None, "photo")]
    model, _ = open_model(args, EMBEDDED, job)
    say_limits()
    sheets: list[Image.Image] = []
    made: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        small = subject.picture.rgb
        check_output(small.size, job.scale)
        source = from_picture(model, small)
        jobs = variants(dataclasses.replace(job, style=args.style or subject.style), preset, args.published)
        announce(model, source, jobs, f"{subject.name}, ")
        size = (round(small.width * job.scale), round(small.height * job.scale))
        shown = {"input": small.resize(size, Image.Resampling.NEAREST), "Lanczos": small.resize(size, Image.Resampling.LANCZOS)}
        for label, each in jobs.items():
            name = f"{subject.name}_{label.lower().replace(' ', '_')}"
            outcome, shown[label], path = enlarge_one(
                output, Order(model, source, each, name, subject.picture), shown=Shown(f"{subject.name}, {label} ", args.quiet)
            )
            agreement = round(_agreement(shown[label], small), 2)
            made[f"{subject.name}, {label}"] = {**report_of(model, each, source, outcome), "file": path.name, "agreement_with_input_db": agreement}
        if subject.truth is not None:
            shown[f"true {job.scale:g}x"] = subject.truth
            output.picture(f"{subject.name}_true", subject.truth)
        output.picture(f"{subject.name}_input", small)
        sheets.append(comparison_sheet(list(shown.items())))
    sheet = output.picture(f"{stem}_sheet", stacked(sheets))
    report = output.report(f"{stem}_report", {"results": made} | machine(model))
    for label, facts in made.items():
        print(f"{label:24} {facts['window_evaluations']:6} window evaluations {facts['seconds']:7.1f} s   {output.folder / facts['file']}")
    print(f"sheet:  {sheet}\nreport: {report}")
