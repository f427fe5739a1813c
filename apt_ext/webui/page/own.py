"""A picture's own settings: what the infotext in a file says of APT."""

from __future__ import annotations

from typing import Any

from modules import errors, images, infotext_utils
from PIL import Image

from apt_ext.webui.page.controls import CONTROLS, pasted

__all__ = ["own_values"]


def own_values(picture: Image.Image) -> dict[str, Any]:
    """Control name -> its value in the infotext of a picture; nothing where there is none of APT's."""
    try:
        text, _ = images.read_info_from_image(picture)
        written = infotext_utils.parse_generation_parameters(text or "")
    except Exception:  # whatever another program has left in the file
        errors.report("APT: a picture's infotext could not be read", exc_info=True)
        return {}
    values = {control.name: pasted(control, written) for control in CONTROLS if control.infotext} if "APT method" in written else {}
    return {name: value for name, value in values.items() if value is not None}
