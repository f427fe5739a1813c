"""The photographs behind the style "photo": some that Python packages carry, and more that Debian packages carry.

Only those with a clear free licence; sources and licences are in `weights/MODEL_CARD.md`. They are needed for training and for
benchmarks, never at run time. Of the Python packages' ten, training sees one half alone; the other half is for benchmarks, so
that a result on it is a result on a picture that the model never saw. Debian's are training's as a whole.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apt_ext.demo.resources import resource_files

__all__ = ["MORE_PHOTOS", "PHOTOS", "held_out_half", "load_more_photos", "load_photos", "training_half"]

Picture = NDArray[np.uint8]

PHOTOS: dict[str, tuple[str, ...]] = {
    "skimage/data": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}

# By Debian package, gcompris-qt-data 3.1-2 and lomiri-wallpapers-16.04 20.04.0-2, and by folder in it; the former's are within Qt resource files.
MORE_PHOTOS: dict[str, dict[str, tuple[str, ...]]] = {
    "gcompris-qt-data": {
        "explore_farm_animals/resource/animals": ("sheep.webp", "chicken.webp", "horse.webp", "pig.webp"),
        "explore_world_animals/resource/animals": ("panda.webp", "crocodile.webp"),
        "explore_monuments/resource/wonders": ("greatWallofChina.webp", "machuPicchu.webp"),
        "explore_monuments/resource/india": (
            *(f"{name}.webp" for name in ("ajantaCave", "charminar", "gatewayofIndia", "goldenTemple", "greatStupa", "hawaMahal")),
            *(f"{name}.webp" for name in ("konarkSunTemple", "mysorePalace", "qutubMinar", "rangGhar", "victoriaMemorial")),
        ),
        "explore_monuments/resource/france": (
            *(f"{name}.webp" for name in ("arlesAmphitheater", "chateaudeChambord", "citedeCarcassonne", "eiffelTower", "montStMichel")),
            *(f"{name}.webp" for name in ("palaisdesPapes", "pontduGard", "reimsCathedral", "rocamadour")),
        ),
    },
    "lomiri-wallpapers-16.04": {
        "usr/share/backgrounds": ("aitzgorri_by_Aitzol_Berasategi.jpg", "sunset_by_Aitzol_Berasategi.jpg"),
    },
}


def load_photos() -> list[Picture]:
    """Every photograph, whole, as (rows, columns, 3) uint8 RGB, in the order of `PHOTOS`.

    Raises:
        ImportError: where scikit-image or scikit-learn is missing.
    """
    import skimage
    import sklearn

    roots = {"skimage": Path(skimage.__file__).parent, "sklearn": Path(sklearn.__file__).parent}
    photos = []
    for folder, names in PHOTOS.items():
        package, _, inner = folder.partition("/")
        photos += [np.asarray(Image.open(roots[package] / inner / name).convert("RGB")) for name in names]
    return photos


def load_more_photos(folder: Path) -> list[Picture]:
    """Every photograph of `MORE_PHOTOS` as (rows, columns, 3) uint8 RGB, from a folder that the packages were unpacked into.

    Raises:
        ValueError: for a file that is nowhere below the folder, with the package that has it.
    """
    archives = {place.split("/")[0] for places in MORE_PHOTOS.values() for place in places}
    packed = {path: data for name in archives for file in sorted(folder.rglob(f"{name}.rcc")) for path, data in resource_files(file).items()}
    photos = []
    for package, places in MORE_PHOTOS.items():
        for path in (f"{place}/{name}" for place, names in places.items() for name in names):
            files = [io.BytesIO(data) for inside, data in packed.items() if inside.endswith(f"/{path}")] or sorted(folder.rglob(path))
            if not files:
                name = Path(path).name
                raise ValueError(f"{name} is nowhere below {str(folder)!r}; unpack Debian's {package} there: dpkg-deb -x FILE.deb {str(folder)!r}")
            photos.append(np.asarray(Image.open(files[0]).convert("RGB")))
    return photos


def training_half(picture: Picture) -> Picture:
    """The part of a picture that training may see: the left half where it is at least as wide as high, else the upper half."""
    return _halves(picture)[0]


def held_out_half(picture: Picture) -> Picture:
    """The part that no training sees: what `training_half` leaves. The two share no pixel."""
    return _halves(picture)[1]


def _halves(picture: Picture) -> tuple[Picture, Picture]:
    rows, columns = picture.shape[:2]
    if columns >= rows:
        return picture[:, : columns // 2], picture[:, columns // 2 :]
    return picture[: rows // 2], picture[rows // 2 :]
