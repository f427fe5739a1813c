"""Picture files in and out: every common format, size and mode; whatever cannot be used is refused in one sentence."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "MAX_SIDE",
    "MIN_SIDE",
    "READ",
    "WRITTEN",
    "Picture",
    "check_folder",
    "load_picture",
    "save_picture",
    "to_picture",
    "to_tensor",
    "write_whole",
]

MIN_SIDE, MAX_SIDE = 16, 16384
READ = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class Picture(NamedTuple):
    """A picture as its viewer would show it.

    Attributes:
        rgb: its colours. `alpha`: its transparency as "L", or None for an opaque one.
        profile: the colour profile that its colours are numbers of, which the result has to carry too; None for sRGB.
        frames: how many pictures the file holds; this is the first.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    profile: bytes | None = None
    frames: int = 1


def _in_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """An opaque picture as RGB, and the profile of its numbers. One of RGB is kept as it is; grey and CMYK are brought to sRGB by theirs."""
    data = image.info.get("icc_profile")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else None
        space = profile.profile.xcolor_space.strip() if profile else ""
        if profile and image.mode in ("L", "CMYK") and space == {"L": "GRAY", "CMYK": "CMYK"}[image.mode]:
            turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return turned if turned is not None else image.convert("RGB"), None
    except (OSError, ImageCms.PyCMSError):  # a damaged profile says nothing
        space = ""
    return image.convert("RGB"), data if space == "RGB" else None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings, of damaged EXIF for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; one that cannot be read is ignored without a word, as viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader stumbles over damaged entries in many ways
        image.load()
        return image.copy()


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey pictures of 16 or 32 bits or of floating point, brought to 8 bits: integers by 65535, floats by 1 or by 255."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"picture {name!r} holds {int((~np.isfinite(values)).sum())} values that are not numbers (NaN or infinite); repair it first")
    highest = float(values.max(initial=0))
    top = 65535.0 if image.mode.startswith("I") else 1.0 if highest <= 2 else 255.0
    if highest > 2 * top:
        raise ValueError(f"picture {name!r} has values up to {highest:g}, so its white is not known; save it with 8 or 16 bits")
    return Image.fromarray((np.clip(values / top, 0, 1) * 255 + 0.5).astype(np.uint8))


def load_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a picture as its viewer would show it: EXIF rotation applied, any mode as RGB, transparency and colour profile kept apart.

    Colours under full transparency are replaced by the mean of the visible ones, so that no hidden colour bleeds into an edge.

    Raises:
        ValueError: for a file that is missing, no picture, damaged, or of a size that cannot be used; the message names it.
    """
    name = str(path)
    try:
        exists = Path(path).is_file()
    except OSError:  # a name that the system cannot even look up
        exists = False
    if not exists:
        raise ValueError(f"picture {name!r} does not exist; give the path of a picture file")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the size is checked below, before anything is decoded
    try:
        with _quietly(), Image.open(path) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
                raise ValueError(f"picture {name!r} is {width} x {height} pixels; use sides from {MIN_SIDE} to {MAX_SIDE}")
            frames = getattr(image, "n_frames", 1)
            turned = _upright(image)
            if turned.mode == "F" or turned.mode.startswith("I"):
                turned = _eight_bit(turned, name)
            has_alpha = turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info
            rgba = turned.convert("RGBA") if has_alpha else None
            rgb, profile = _in_rgb(turned)
    except ValueError as error:
        if str(error).startswith("picture "):
            raise
        raise ValueError(f"picture {name!r} cannot be read ({error}); it may be damaged, save it anew") from None
    except Exception as error:  # decoders meet damaged files with whatever they stumble over
        reason = "is not a picture in a format that can be read" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({error})"
        raise ValueError(f"picture {name!r} {reason}; use a PNG, JPEG, WebP, TIFF, BMP or GIF file") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if rgba is None:
        return Picture(rgb, None, profile, frames)
    alpha = rgba.getchannel("A")
    opacity = np.asarray(alpha, np.float64)[..., None] / 255
    if opacity.min() == 1:
        return Picture(rgb, None, profile, frames)
    colours = np.asarray(rgba.convert("RGB"), np.float64)
    mean = (colours * opacity).sum((0, 1)) / max(opacity.sum(), 1e-9)
    return Picture(Image.fromarray((colours * opacity + mean * (1 - opacity) + 0.5).astype(np.uint8)), alpha, profile, frames)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (1, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in -1..1 -> RGB picture."""
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def check_folder(folder: Path) -> None:
    """Make sure that files can be written into a folder, creating it where it is missing.

    Raises:
        ValueError: where they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be written to ({error.strerror}); choose another with -o") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or not there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_picture(image: Image.Image, path: Path, text: Mapping[str, str] | None = None, profile: bytes | None = None) -> None:
    """Write a picture in the format of its name (`WRITTEN`), whole or not at all. Equal pictures and texts give equal bytes.

    Args:
        text: kept as a PNG's text chunks, and in the EXIF comment of the other formats. `profile`: of its colours.
    """
    kind, buffer = WRITTEN[path.suffix.lower()], io.BytesIO()
    more: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if kind == "PNG":
        more["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            more["pnginfo"].add_text(key, value)
    else:
        more["quality"] = 95
        if text and "parameters" in text:
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text["parameters"].encode("utf-16-be")  # UserComment, as the WebUI writes it
            more["exif"] = exif
    image.save(buffer, kind, **more)
    write_whole(path, buffer.getvalue())
