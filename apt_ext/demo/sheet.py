"""The side-by-side sheet: whole pictures in one row, magnified crops of the same places below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["busiest_places", "comparison_sheet"]

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
    side = min(min(width, height), max(8, round(width / zoom)))
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
