"""Colour fix: the coarsest colours of a finished picture are those of the picture that it was made from.

An autoencoder shifts colours by itself, a few levels over whole areas, and sampling adds to it. Both pictures are compared at the smaller
one's size, where the detail that the larger one gained is out of the way.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.borders import NOWHERE, fill_around, interpolate
from apt_ext.core.statistics import at_least_float32
from apt_ext.core.types import Around, size_of

__all__ = ["fix_colour"]


def fix_colour(picture: Tensor, smaller: Tensor, width: float, around: Around = NOWHERE) -> Tensor:
    """Take everything coarser than `width` from the smaller picture.

    Args:
        picture: (B, 3, H, W), the finished one. `smaller`: (B, 3, h, w), what it was made from, in the same range of values.
        width: std of the Gaussian that parts coarse from fine, in pixels of the smaller picture; 0 changes nothing.
        around: the axes along which both are seamless.

    Returns:
        (B, 3, H, W) in the picture's dtype: picture + enlarge(G(smaller - shrink(picture))). Values may leave the range by a little.

    Raises:
        ValueError: where `smaller` has more pixels along a side than the picture.
    """
    if width == 0:
        return picture
    size, small = size_of(picture), size_of(smaller)
    if small[0] > size[0] or small[1] > size[1]:
        raise ValueError(f"colours of {small[0]} x {small[1]} pixels cannot be given to a picture of {size[0]} x {size[1]}; pass the smaller one second")
    error = at_least_float32(smaller).to(picture.device) - F.interpolate(at_least_float32(picture), size=small, mode="area")
    reach = 2 * math.ceil(4 * width) + 1
    coarse = gaussian_blur(error, (reach, reach), width, fill_around("reflect", around))
    return (at_least_float32(picture) + interpolate(coarse, size, around)).to(picture.dtype)
