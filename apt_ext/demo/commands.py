"""The commands that enlarge: a picture, many pictures one after the other, or one that the model makes itself."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from apt_ext.core.ranks.ranks import ALONE
from apt_ext.demo.arguments import job_from
from apt_ext.demo.enlarging import Order, announce, enlarge_one, file_text, machine, report_of, stem_of
from apt_ext.demo.job import Shown, check_output, plan_picture, seconds_per_view, show
from apt_ext.demo.model import LeavesModel, choose_device, load_model
from apt_ext.demo.output import Output
from apt_ext.demo.pictures import READ, WRITTEN, Picture, load_picture
from apt_ext.demo.sources import from_picture, from_words
from apt_ext.demo.upscalers import enlarger
from apt_ext.demo.wanted import BaseJob, Job, Model, Source

__all__ = ["EMBEDDED", "Kind", "command_generate", "command_upscale", "open_model", "say_limits"]

LIMITS = (
    "The embedded model is small: it sharpens edges and adds texture of the kind that it was trained on, but it does not know what your picture shows. "
    "For real detail use the method with Stable Diffusion."
)


def say_limits(limits: str = LIMITS) -> None:
    """What to expect of a model."""
    if limits:
        print(limits, file=sys.stderr)


class Kind(NamedTuple):
    """A kind of model, for the command line.

    Attributes:
        job: arguments, the words to guide towards where they say nothing -> what is wanted. `open`: the model, once everything else that can be
            refused has been, and what is wanted now that it is known. `limits`: what to expect of it, said on the error stream; or nothing.
        prepare: what else a picture's job starts from (masks and the like), in the place of the source without it.
        name: of a picture that the model makes by itself.
    """

    job: Callable[[argparse.Namespace, str], BaseJob]
    open: Callable[[argparse.Namespace, Any], tuple[Model, BaseJob]]
    limits: str
    prepare: Callable[[argparse.Namespace, Source], Source]
    name: Callable[[Any], str]


def _files(given: Sequence[str]) -> list[str]:
    """The picture files that are meant: each as it is given, and what a folder holds."""
    files: list[str] = []
    for name in given:
        if not os.path.isdir(name):  # unlike a Path, it answers for a name that cannot be looked up
            files.append(name)
            continue
        inside = sorted(str(path) for path in Path(name).iterdir() if path.suffix.lower() in READ and path.is_file())
        if not inside:
            raise ValueError(f"folder {name!r} holds no picture; use PNG, JPEG, WebP, TIFF, BMP or GIF files")
        files += inside
    return files


def _checked(name: str, job: BaseJob) -> Picture:
    """A picture that can be enlarged; where it is the first of several, that is said.

    Raises:
        ValueError: where it cannot.
    """
    picture = load_picture(name)
    check_output(picture.rgb.size, job.scale)
    if picture.frames > 1:
        print(f"{name}: the first of its {picture.frames} pictures is enlarged", file=sys.stderr)
    return picture


def _finish(args: argparse.Namespace, output: Output, order: Order, bar: Any = None) -> str:
    """Enlarge one source, write its result and report, and say so: the line to show."""
    outcome, _, path = enlarge_one(output, order, shown=Shown(quiet=args.quiet, bar=bar), keep=args.keep_phases)
    output.report(stem_of(order.name), report_of(order.model, order.job, order.source, outcome) | machine(order.model))
    return f"{path} ({outcome.seconds:.0f} s)"


def _name(args: argparse.Namespace, output: Output, job: BaseJob, stem: str) -> str:
    """Of a result."""
    return output.file.name if output.file else output.free_stem(f"{stem}_{job.options.method}{'_apt' if args.apt else ''}_{job.scale:g}x")


def _open_embedded(args: argparse.Namespace, job: Job) -> tuple[LeavesModel, Job]:
    device = choose_device(args.device)
    enlarger(job.options.upscaler, device)
    model = load_model(device=device)
    model.style_index(job.style)
    return model, job


EMBEDDED = Kind(job_from, _open_embedded, LIMITS, lambda args, source: source, lambda job: f"{job.style}_{job.seed}")


def open_model(args: argparse.Namespace, kind: Kind, job: BaseJob) -> tuple[Model, BaseJob]:
    """The model of a kind, and the job on it. Its calls are dealt out to the processes there are, or, where whole pictures are, to itself alone."""
    model, job = kind.open(args, job)
    model.ranks = ALONE if vars(args).get("share") == "pictures" else args.ranks
    return model, job


def command_upscale(args: argparse.Namespace, output: Output, kind: Kind = EMBEDDED) -> None:
    """Enlarge a picture, or several, one after the other.

    Raises:
        ValueError: where nothing can be made, or, at the end, where some of several pictures could not be.
    """
    job = kind.job(args, "photo")
    files = _files(args.image)
    if len(files) > 1:
        _upscale_all(args, output, job, files, kind)
        return
    picture = _checked(files[0], job)
    if picture.alpha is not None and output.file and WRITTEN[output.file.suffix.lower()] == "JPEG":
        raise ValueError(f"{str(output.file)!r} cannot hold the transparency of {files[0]!r}; use a .png or .webp name")
    if output.file and output.file.resolve() == Path(files[0]).resolve():
        raise ValueError(f"{files[0]!r} would be overwritten by its own result; use another name for -o")
    model, job = open_model(args, kind, job)
    plan_picture(model, picture.rgb.size, job)
    say_limits(kind.limits)
    source = kind.prepare(args, from_picture(model, picture.rgb, job))
    announce(model, source, {job.options.method: job})
    print(_finish(args, output, Order(model, source, job, _name(args, output, job, Path(files[0]).stem), picture)))


def _upscale_all(args: argparse.Namespace, output: Output, job: BaseJob, files: Sequence[str], kind: Kind) -> None:
    if output.file:
        raise ValueError(f"{str(output.file)!r} is one file and {len(files)} pictures are given; use a folder for -o")
    model, job = open_model(args, kind, job)
    say_limits(kind.limits)
    good: dict[str, tuple[str, int]] = {}  # by file: the result's name, and its evaluations
    bad, shared = list[str](), args.ranks if model.ranks is ALONE else ALONE
    for file in files:
        try:
            views = plan_picture(model, _checked(file, job).rgb.size, job).evaluations
            good[file] = _name(args, output, job, Path(file).stem), views
        except ValueError as error:
            bad.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
    total = sum(views for _, views in good.values())
    minutes = total * seconds_per_view(model, job) / 60 / args.ranks.count
    print(f"{len(good)} pictures, {total} window evaluations, about {minutes:.1f} minutes", file=sys.stderr)
    started = time.perf_counter()
    args.ranks.numbers(0)  # all have looked for free names before any is taken
    own = list(good)[shared.rank :: shared.count]
    with tqdm(total=sum(good[file][1] for file in own), unit="window", disable=args.quiet, mininterval=0.3) as bar:
        for file in own:
            bar.set_description(Path(file).name[:40])
            picture = load_picture(file)
            source = kind.prepare(args, from_picture(model, picture.rgb, job))
            bar.write(_finish(args, output, Order(model, source, job, good[file][0], picture), bar), file=sys.stdout)
    args.ranks.numbers(0)
    for file in good:
        if file not in own:
            print(output.folder / f"{good[file][0]}.png")
    print(f"{len(good)} of {len(files)} pictures in {time.perf_counter() - started:.0f} s")
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} pictures were left out; the first: {bad[0]}")


def command_generate(args: argparse.Namespace, output: Output, kind: Kind = EMBEDDED) -> None:
    """Let the model make a picture, and enlarge it."""
    job = kind.job(args, "autumn")
    model, job = open_model(args, kind, job)
    plan_picture(model, (model.first_size.columns * model.factor, model.first_size.rows * model.factor), job)
    say_limits(kind.limits)
    source = from_words(model, job)
    stem = output.free_stem(kind.name(job))
    first = show(model, source, source.latent, 1.0)
    output.picture(stem, first, file_text(model, job, first))
    announce(model, source, {job.options.method: job})
    print(_finish(args, output, Order(model, source, job, _name(args, output, job, stem))))
