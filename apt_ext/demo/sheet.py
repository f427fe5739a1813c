"""Sheets to look at: results side by side with magnified crops, and the model's own pictures beside real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apt_ext.demo.job import show
from apt_ext.demo.model import LeavesModel
from apt_ext.demo.sources import from_words
from apt_ext.demo.wanted import Job
from apt_ext.demo.world import STYLES, make_scene, render

__all__ = ["busiest_places", "comparison_sheet", "samples_sheet", "stacked"]

MARGIN, LABEL = 12, 30
PAPER, INK, FRAMES = (250, 249, 246), (40, 40, 40), ((214, 48, 49), (9, 132, 227), (225, 112, 0))


def busiest_places(image: Image.Image, side: int, count: int) -> list[tuple[int, int]]:
    """Top-left corners of `count` squares with much going on in them, well apart from each other."""
    grey = np.asarray(image.convert("L"), np.float64)
    energy = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = max(1, energy.shape[0] - side), max(1, energy.shape[1] - side)
    low, right = slice(side, side + rows), slice(side, side + columns)
    score = total[low, right] - total[:rows, right] - total[low, :columns] + total[:rows, :columns]
    places = []
    for _ in range(count):
        y, x = (int(v) for v in np.unravel_index(int(score.argmax()), score.shape))
        places.append((x, y))
        score[max(0, y - side) : y + side, max(0, x - side) : x + side] = -1
    return places


def comparison_sheet(pictures: Sequence[tuple[str, Image.Image]], *, crops: int = 2, zoom: int = 3, cell: int = 384) -> Image.Image:
    """Lay out pictures of one size in columns.

    Args:
        pictures: (label, picture) pairs; the last one's detail decides where the crops are taken.
        crops: rows of crops. `zoom`: how much larger than the whole picture they are shown.
        cell: width of a column in pixels.
    """
    width, height = pictures[-1][1].size
    shown = cell / width
    side = max(1, min(width - 2, height - 2, max(8, round(width / zoom))))
    places = busiest_places(pictures[-1][1], side, crops)
    rows = [round(height * shown)] + [cell] * crops
    sheet = Image.new("RGB", (MARGIN + len(pictures) * (cell + MARGIN), LABEL + sum(rows) + MARGIN * len(rows)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column, (label, picture) in enumerate(pictures):
        left, top = MARGIN + column * (cell + MARGIN), LABEL
        draw.text((left, 6), label, fill=INK, font=font)
        sheet.paste(picture.resize((cell, rows[0]), Image.Resampling.LANCZOS if shown < 1 else Image.Resampling.NEAREST), (left, top))
        for k, (x, y) in enumerate(places):
            frame = [left + x * shown, top + y * shown, left + (x + side) * shown - 1, top + (y + side) * shown - 1]
            draw.rectangle(frame, outline=FRAMES[k % len(FRAMES)], width=2)
        for k, (x, y) in enumerate(places):
            top += rows[k] + MARGIN
            crop = picture.crop((x, y, x + side, y + side)).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(crop, (left, top))
            draw.rectangle([left, top, left + cell - 1, top + cell - 1], outline=FRAMES[k % len(FRAMES)], width=2)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def samples_sheet(model: LeavesModel, job: Job, count: int, side: int = 128) -> Image.Image:
    """For each style a row of real scenes, where the world has it, and a row of pictures that the model made.

    Args:
        job: sampler, schedule, guidance and first seed. `count`: pictures in a row. `side`: of a picture on the sheet, in pixels.
    """
    rows: list[tuple[str, list[Image.Image]]] = []
    for style in model.styles:
        seeds = [job.seed + k for k in range(count)]
        if style in STYLES:
            # Seeds that the training never used: its own begin at a million.
            rows.append((f"{style}, real", [Image.fromarray(render(make_scene(style, seed), 64)) for seed in seeds]))
        sources = [from_words(model, dataclasses.replace(job, style=style, seed=seed)) for seed in seeds]
        rows.append((f"{style}, made", [show(model, source, source.latent, 1.0) for source in sources]))
    label = 130
    sheet = Image.new("RGB", (label + count * (side + 4), len(rows) * (side + 4) + 4), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for k, (name, pictures) in enumerate(rows):
        top = 4 + k * (side + 4)
        draw.text((8, top + side // 2 - 8), name, fill=INK, font=font)
        for n, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (label + n * (side + 4), top))
    return sheet
