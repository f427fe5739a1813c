"""A picture of the windows of a job, each with the words that it keeps of the prompt."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

from modules import images
from PIL import Image, ImageDraw

from apt_ext.core.windows import Window
from apt_ext.webui.model import FACTOR

__all__ = ["draw_labels"]

SIZES = (28, 24, 20, 17, 15, 13, 11, 9)  # of the letters in pixels; the first at which every label finds room


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> list[str]:
    """The text in lines no wider than `width`, as far as its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_labels(picture: Image.Image, windows: Sequence[Window], texts: Sequence[str]) -> Image.Image:
    """The picture, dimmed, with every window's outline and, in its colour, the text that it keeps.

    Labels stand in a lattice with a cell for each window, since the windows themselves overlap; what does not fit ends in an ellipsis.

    Args:
        windows: in latent pixels of the picture. `texts`: one for each.
    """
    drawn = Image.blend(picture.convert("RGB"), Image.new("RGB", picture.size), 0.35)
    draw = ImageDraw.Draw(drawn)
    colours = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(k * 0.381966 % 1, 0.45, 1.0)) for k in range(len(windows))]
    line = max(1, picture.width // 1024)
    for window, colour in zip(windows, colours, strict=True):
        left, top = window.left * FACTOR, window.top * FACTOR
        draw.rectangle((left, top, left + window.width * FACTOR - 1, top + window.height * FACTOR - 1), outline=colour, width=line)
    rows, columns = (sorted({getattr(window, side) for window in windows}) for side in ("top", "left"))
    cell = (picture.width / len(columns), picture.height / len(rows))
    room = (cell[0] - 16, cell[1] - 14)
    for size in SIZES:
        font = images.get_font(size)
        height = draw.textbbox((0, 0), "Ag", font=font)[3] + 4
        most = max(1, int(room[1] // height))
        labels = [_wrapped(draw, text, font, room[0]) for text in texts]
        if all(len(lines) <= most and all(draw.textlength(one, font=font) <= room[0] for one in lines) for lines in labels):
            break
    for window, lines, colour in zip(windows, labels, colours, strict=True):
        shown = "\n".join(lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} ..."])
        if not shown:
            continue
        centre = ((columns.index(window.left) + 0.5) * cell[0], (rows.index(window.top) + 0.5) * cell[1])
        x0, y0, x1, y1 = draw.multiline_textbbox(centre, shown, font=font, anchor="mm", align="center")
        draw.rectangle((x0 - 4, y0 - 3, x1 + 4, y1 + 3), fill=(0, 0, 0), outline=colour, width=line)
        draw.multiline_text(centre, shown, font=font, fill=colour, anchor="mm", align="center")
    return drawn
