"""The photographs behind the style "photo": those that scikit-image and scikit-learn carry inside their packages.

Only those with a clear free licence; sources and licences are in `weights/MODEL_CARD.md`. They are needed for training, never at run time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PHOTOS", "load_photos"]

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


def load_photos() -> list[NDArray[np.uint8]]:
    """Every photograph as (rows, columns, 3) uint8 RGB.

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
