"""A picture of the windows of a job, each with the words that it keeps of the prompt."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from modules import images
from PIL import Image, ImageDraw

from apt_ext.core.windows import Window
from apt_ext.webui.sizes import FACTOR

__all__ = ["draw_labels"]


def _spacing(starts: Sequence[int], whole: int) -> int:
    """Pixels between neighbouring windows: the room that a label has."""
    ordered = sorted(set(starts))
    gaps = [b - a for a, b in pairwise(ordered)]
    return max(6, min(gaps, default=whole))


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float, lines: int) -> str:
    """The text in lines no wider than `width`; what does not fit is cut off with an ellipsis."""
    made: list[str] = []
    for word in text.split():
        longer = f"{made[-1]} {word}" if made else word
        if made and draw.textlength(longer, font=font) <= width:
            made[-1] = longer
        else:
            made.append(word)
    if len(made) > lines:
        made = [*made[: lines - 1], made[lines - 1] + " ..."]
    return "\n".join(made)


def draw_labels(picture: Image.Image, windows: Sequence[Window], texts: Sequence[str]) -> Image.Image:
    """The picture, dimmed, with every window's outline and the text that it keeps in the window's middle.

    Args:
        windows: in latent pixels of the picture. `texts`: one for each.
    """
    drawn = Image.blend(picture.convert("RGB"), Image.new("RGB", picture.size), 0.35)
    draw = ImageDraw.Draw(drawn)
    boxes = [(w.left * FACTOR, w.top * FACTOR, (w.left + w.width) * FACTOR - 1, (w.top + w.height) * FACTOR - 1) for w in windows]
    room = (_spacing([w.left for w in windows], windows[0].width) * FACTOR, _spacing([w.top for w in windows], windows[0].height) * FACTOR)
    room = (min(room[0], picture.width), min(room[1], picture.height))
    font = images.get_font(max(10, min(28, round(min(room) / 12))))
    line = max(1, picture.width // 1024)
    colours = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(k * 0.381966 % 1, 0.45, 1.0)) for k in range(len(windows))]
    for box, colour in zip(boxes, colours, strict=True):
        draw.rectangle(box, outline=colour, width=line)
    height = draw.textbbox((0, 0), "Ag", font=font)[3] + 4
    for (left, top, right, bottom), text, colour in zip(boxes, texts, colours, strict=True):
        shown = _wrapped(draw, text, font, room[0] - 16, max(1, int((room[1] - 12) // height)))
        centre = ((max(0, left) + min(picture.width, right)) / 2, (max(0, top) + min(picture.height, bottom)) / 2)
        x0, y0, x1, y1 = draw.multiline_textbbox(centre, shown, font=font, anchor="mm", align="center")
        draw.rectangle((x0 - 4, y0 - 3, x1 + 4, y1 + 3), fill=(0, 0, 0), outline=colour, width=line)
        draw.multiline_text(centre, shown, font=font, fill=colour, anchor="mm", align="center")
    return drawn
