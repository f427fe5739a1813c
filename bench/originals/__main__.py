"""The published pipelines of DemoFusion and AccDiffusion beside this engine, on the same weights and from the same seeds.

    python -m bench.originals --model <an SDXL checkpoint> --demofusion <checkout> --accdiffusion <checkout>

Their code comes from checkouts of one's own; see docs/originals.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.library import job_for, upscale
from apt_ext.checkpoints.model import Checkpoint
from apt_ext.checkpoints.opening import open_checkpoint
from apt_ext.checkpoints.packages import quieten
from apt_ext.demo.pictures import check_folder, write_whole
from apt_ext.options import blur_std
from bench.machine import facts
from bench.originals.costs import counted
from bench.originals.ours import DEPARTURES, Made, decoded, run_ours
from bench.originals.page import page
from bench.originals.real import distances, real_pictures
from bench.originals.theirs import PUBLISHED, Published, Record, open_checkout, run_theirs

__all__ = ["compared", "main"]

PRESETS = ("Published", "Balanced")
OF_ACCDIFFUSION = ("exchange", "words")


def _levels(one: Image.Image, other: Image.Image) -> dict[str, float]:
    """Mean and largest difference of two pictures, in levels of 255."""
    difference = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return {"mean": float(difference.mean()), "most": int(difference.max())}


def _difference(made: Made, record: Record) -> dict[str, Any]:
    """Largest differences of the latents: of the base, and after each step, [phase][step]."""
    pairs = zip(made.after, (one.after for one in record.passes[1:]), strict=True)
    return {
        "base": float((made.base - record.passes[0].after[-1]).abs().max()),
        "steps": [[float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs],
        "latent": float((made.latent - record.latent).abs().max()),
    }


def _presets(model: Checkpoint, job: PromptJob, given: dict[str, Any]) -> tuple[dict[str, Image.Image], dict[str, Any]]:
    """The picture of a job by each preset, and what each costs."""
    pictures, costs = {}, {}
    for preset in PRESETS:
        own = given if preset == "Published" else {"method": job.options.method, "window_batch": job.options.window_batch}
        with counted(model.network, model.device) as cost:
            made = upscale(model, None, prompt=job.prompt, negative=job.negative, scale=job.scale, preset=preset, guidance=job.guidance, seed=job.seed, **own)
        pictures[preset], costs[f"APT, {preset}"] = made.image, dataclasses.asdict(cost)
    return pictures, costs


def compared(
    model: Checkpoint, module: ModuleType, published: Published, job: PromptJob, given: dict[str, Any], departures: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """One job by a published pipeline and by this engine.

    Args:
        job: with the settings of the preset Published. `given`: those that were changed of it.
        departures: the names of those that are taken one by one.

    Returns:
        Costs and differences, and the pictures, theirs under "theirs".
    """
    own = job.schedule
    with counted(model.network, model.device) as cost:
        record = run_theirs(
            module,
            published,
            model.pipe,
            prompt=job.prompt,
            negative=job.negative,
            scale=round(job.scale),
            steps=own.steps,
            guidance=job.guidance,
            seed=job.seed,
            blur=blur_std(job.options),
        )
    pictures, costs = _presets(model, job, given)
    runs = {"none": (), **{name: (name,) for name in departures}, "all": tuple(DEPARTURES)}
    found: dict[str, Any] = {}
    for name, taken in tqdm(runs.items(), desc=f"{published.method}: departures", unit="run"):
        made = run_ours(model, job, record, taken)
        found[name] = _difference(made, record)
        if name == "none":
            found[name]["picture"] = _levels(record.decode(made.latent), record.pictures[-1])
        if name == "all":
            found[name]["picture"] = _levels(decoded(model, made.base, made.latent), record.pictures[-1])
            found[name]["from the library's picture"] = _levels(decoded(model, made.base, made.latent), pictures["Published"])
    decoder = _levels(decoded(model, record.passes[0].after[-1], record.latent), record.pictures[-1])
    size = {"deviation": float(record.latent.std()), "size": list(record.pictures[-1].size), "steps": own.steps, "guidance": job.guidance}
    costs = {f"{published.repository.rpartition('/')[2]}, published": dataclasses.asdict(cost), **costs}
    return {**size, "costs": costs, "departures": found, "decoder": decoder}, {"theirs": record.pictures[-1], **pictures}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.originals", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="X", help="an SDXL checkpoint: a diffusers folder, a .safetensors file, or a name on the hub")
    parser.add_argument("--config", metavar="X", help="for a single file: folder or hub name whose parts it is a checkpoint of")
    for name, one in PUBLISHED.items():
        parser.add_argument(f"--{name}", metavar="FOLDER", help=f"a checkout of {one.repository}")
    parser.add_argument("--prompt", default="a cute corgi on the lawn", help="or a text file of them, a line for each")
    parser.add_argument("--negative", default="blurry, ugly, duplicate, poorly drawn, deformed, mosaic")
    parser.add_argument("--scale", type=int, default=2, help="along a side, whole: their phases are x 2, x 3, ...")
    parser.add_argument("--steps", type=int, default=50, help="of each phase")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="pictures of each prompt, of seeds that count up; differences are taken of the first")
    parser.add_argument("--departures", default=",".join(DEPARTURES), help="those taken one by one, each a run of its own; '' for none")
    parser.add_argument("--real", metavar="FOLDER", help="real pictures, to tell how far those of each pipeline are from them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path("out/originals"), help="folder of results.json, results.md and the pictures")
    return parser


def _prompts(given: str) -> list[str]:
    path = Path(given)
    lines = path.read_text().splitlines() if given.endswith(".txt") and path.is_file() else [given]
    return [line.strip() for line in lines if line.strip()]


def _open(args: argparse.Namespace, modules: dict[str, ModuleType]) -> Checkpoint:
    if not modules:
        raise ValueError("no checkout is named; give --demofusion, --accdiffusion or both, each with the folder of a git clone")
    unknown = [name for name in args.departures.split(",") if name and name not in DEPARTURES]
    if unknown:
        raise ValueError(f"departure {unknown[0]!r} does not exist; use some of {', '.join(DEPARTURES)}")
    if not 2 <= args.scale <= 8:
        raise ValueError(f"scale {args.scale} is out of range; use a whole number from 2 to 8")
    check_folder(args.out)
    quieten()
    model = open_checkpoint(args.model, device=args.device, dtype=args.dtype, config=args.config)
    if model.family.name != "sdxl":
        raise ValueError(f"the published pipelines are made for SDXL, and {args.model!r} is a checkpoint of {model.family.label}; name an SDXL one")
    return model


def _run(args: argparse.Namespace) -> dict[str, Any]:
    modules = {name: open_checkout(getattr(args, name), one) for name, one in PUBLISHED.items() if getattr(args, name) is not None}
    model, prompts = _open(args, modules), _prompts(args.prompt)
    seeds = range(args.seed, args.seed + args.count)
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    side = model.facts.window.rows * model.factor * args.scale
    real = None if args.real is None else real_pictures(args.real, len(jobs), side)
    results: dict[str, Any] = {"machine": facts(model.device), "model": model.about, "pipelines": {}}
    for method, module in modules.items():
        given = {"method": method, "steps": args.steps}
        sets: dict[str, list[Image.Image]] = {}
        for number, (prompt, seed) in enumerate(jobs if real else jobs[:1]):
            job = job_for(prompt, args.negative, float(args.scale), "Published", args.guidance, seed, False, given)
            departures = [name for name in args.departures.split(",") if name in DEPARTURES] if number == 0 else []
            own = [name for name in departures if method == "accdiffusion" or name not in OF_ACCDIFFUSION]
            found, pictures = compared(model, module, PUBLISHED[method], job, given, own)
            if number == 0:
                results["pipelines"][method] = found
            for name, picture in pictures.items():
                sets.setdefault(name, []).append(picture)
                picture.save(args.out / f"{method}-{name.lower()}-{number}.png")
        if real:
            results["pipelines"][method]["from real pictures"] = distances(sets, real)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 2 for what cannot be used."""
    args = _parser().parse_args(argv)
    try:
        results = _run(args)
    except ValueError as error:
        print(f"bench.originals: {error}", file=sys.stderr)
        return 2
    write_whole(args.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_whole(args.out / "results.md", page(results).encode())
    print(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
