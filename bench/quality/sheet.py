"""The sheets for the eye: `python -m bench.quality.sheet`. Six scenes and six photographs at 4x, by every preset, with crops."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from apt_ext.demo.model import WEIGHTS
from apt_ext.demo.pictures import save_picture, to_picture
from apt_ext.demo.sheet import busiest_places
from bench.quality.pictures import LARGEST, PIXELS, SETS, BenchModel, open_model, true_pictures
from bench.quality.runner import pictures_of, run_tasks
from bench.quality.settings import Setting, all_settings
from bench.quality.tasks import Task

__all__ = ["COLUMNS", "NUMBERS", "main", "make_sheet"]

COLUMNS = ("Lanczos", "DemoFusion as published", "Fast", "Balanced", "Quality")
NUMBERS = {"scenes": range(6), "photographs": range(6)}
FILES = {"scenes": "sheet-scenes.png", "photographs": "sheet-photos.png"}
SCALE = LARGEST // PIXELS
CELL, GAP, HEAD = 128, 6, 22
PAPER, INK, FRAME = (250, 249, 246), (40, 40, 40), (214, 48, 49)


def _columns(kind: str, bench: BenchModel, numbers: Sequence[int], work: Path) -> dict[str, list[Image.Image]]:
    """Label -> the pictures, all of the large size; the input's pixels stay visible."""
    named: dict[str, Setting] = {}
    for setting in all_settings():
        named.setdefault(setting.name, setting)
    tasks = {name: Task(named[name], SCALE, kind, bench, max(numbers) + 1) for name in COLUMNS}
    run_tasks(list(tasks.values()), work)
    small = [to_picture(picture) for picture in true_pictures(kind, numbers, PIXELS, work)]
    columns = {"input": [picture.resize((LARGEST, LARGEST), Image.Resampling.NEAREST) for picture in small]}
    for name, task in tasks.items():
        columns[name.replace(" as published", "")] = [Image.fromarray(picture) for picture in pictures_of(task, numbers, work)]
    columns["truth"] = [to_picture(picture) for picture in true_pictures(kind, numbers, LARGEST, work)]
    return columns


def make_sheet(columns: dict[str, list[Image.Image]]) -> Image.Image:
    """A row per picture: the whole above, at half its size, and below it the part with most going on, pixel by pixel."""
    count, font = len(columns["truth"]), ImageFont.load_default(size=13)
    height = 2 * CELL + 2 * GAP
    sheet = Image.new("RGB", (GAP + len(columns) * (CELL + GAP), HEAD + count * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    places = [busiest_places(picture, CELL, 1)[0] for picture in columns["truth"]]
    for column, (label, pictures) in enumerate(columns.items()):
        left = GAP + column * (CELL + GAP)
        draw.text((left, 4), label, fill=INK, font=font)
        for row, (picture, (x, y)) in enumerate(zip(pictures, places, strict=True)):
            top = HEAD + row * height
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.BOX), (left, top))
            sheet.paste(picture.crop((x, y, x + CELL, y + CELL)), (left, top + CELL + 2))
            if label == "truth":
                half = [left + x // 2, top + y // 2, left + (x + CELL) // 2 - 1, top + (y + CELL) // 2 - 1]
                draw.rectangle(half, outline=FRAME)
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheets; what is not in the work folder is made first."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality.sheet", description="Sheets of scenes and photographs by every preset.")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="the benchmark's work folder")
    parser.add_argument("--out", type=Path, default=Path("docs"), help=f"folder for {' and '.join(FILES.values())}")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the model's weights")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in SETS:
        columns = _columns(kind, open_model(args.weights), NUMBERS[kind], args.work)
        path = args.out / FILES[kind]
        save_picture(make_sheet(columns), path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
