"""The phases of a job: the sizes that a picture goes through on its way to the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from apt_ext.core.dilated import dilation_for
from apt_ext.core.types import Size

__all__ = ["Phase", "base_size", "plan_phases"]


class Phase(NamedTuple):
    """One phase.

    Attributes:
        number: from 1.
        size: (rows, columns) in latent pixels.
        scale: s, the linear ratio of the size to the base size.
        dilation: d along (rows, columns).
    """

    number: int
    size: Size
    scale: float
    dilation: Size


def base_size(size: tuple[int, int], window: tuple[int, int], multiple: int = 1, tolerance: float = 1.5) -> Size:
    """The size at which the model composes a whole picture.

    Args:
        size: (rows, columns) of the given picture, in latent pixels.
        window: the model's native size.
        multiple: sides are rounded to a multiple of this.
        tolerance: up to this many times the native area, the picture's own size is the base.

    Returns:
        The picture's own size, or its aspect at the native area where the picture is larger.
    """
    area, native = size[0] * size[1], window[0] * window[1]
    if area <= tolerance * native:
        return Size(*size)
    ratio = math.sqrt(native / area)
    # The short side of a panorama keeps half a window, or nothing could be told apart on it.
    least = (window[0] // 2, window[1] // 2)
    return Size(*(min(n, max(multiple, w, round(n * ratio / multiple) * multiple)) for n, w in zip(size, least, strict=True)))


def _linear(size: tuple[int, int], base: tuple[int, int]) -> float:
    return math.sqrt(size[0] * size[1] / (base[0] * base[1]))


def plan_phases(
    base: tuple[int, int], start: tuple[int, int], target: tuple[int, int], policy: str | Sequence[float] = "progressive", factor: int = 8
) -> list[Phase]:
    """Lay out the phases from a starting size to a target.

    Args:
        base: the size at which the model composes, the unit of scales.
        start: the size of the latent that the first phase enlarges; often the base.
        target: the size of the last phase, exactly.
        policy: "progressive" goes by the start x 2, x 3, ... (DemoFusion, which starts from the base), the last one taking up what is
            left; "double" by equal factors of at most 2; "direct" in one phase; a sequence gives the ratios to the base, the target
            being added where it is missing.
        factor: pixels per latent pixel; a refusal speaks of pixels.

    Returns:
        At least one phase, of strictly growing size; one at the starting size itself where the target is no larger.

    Raises:
        ValueError: for a target smaller than the start, or ratios that do not lie between the two.

    Example:
        >>> base, target = Size(64, 96), Size(256, 384)
        >>> [tuple(phase.size) for phase in plan_phases(base, base, target)]
        [(128, 192), (192, 288), (256, 384)]
        >>> [tuple(phase.size) for phase in plan_phases(base, base, target, "double")]
        [(128, 192), (256, 384)]
        >>> [phase.scale for phase in plan_phases(base, base, target, (1.5,))]
        [1.5, 4.0]
    """
    if target[0] < start[0] or target[1] < start[1]:
        (width, height), (given_width, given_height) = ((side[1] * factor, side[0] * factor) for side in (target, start))
        raise ValueError(
            f"the target, {width} x {height} pixels, is smaller than the picture that is enlarged, {given_width} x {given_height}; choose a larger one"
        )
    first, last = _linear(start, base), _linear(target, base)
    if policy == "direct" or start == target:
        ratios: list[float] = []
    elif policy == "double":
        count = math.ceil(math.log2(max(t / s for t, s in zip(target, start, strict=True))) - 1e-9)
        ratios = [first * (last / first) ** (k / count) for k in range(1, count)]
    elif policy == "progressive":
        ratios = [first * k for k in range(2, math.floor(last / first) + 1) if k <= last / first - 0.5]
    elif isinstance(policy, str):
        raise ValueError(f"phase policy {policy!r} does not exist; use progressive, double, direct or a list of ratios")
    else:
        if not all(a < b for a, b in pairwise(policy)) or not all(math.isfinite(r) for r in policy):
            raise ValueError(f"phase ratios {list(policy)} must rise; order them")
        ratios = [r for r in policy if abs(r - last) > 0.01 * last]
        outside = [r for r in ratios if not first < r < last]
        if outside:
            raise ValueError(f"phase ratio {outside[0]:g} does not lie between the picture's {first:.3g} and the target's {last:.3g}; choose one between them")
    sizes = []
    for r in ratios:
        # Along each axis the way from start to target is gone in equal proportion, so that the aspect changes smoothly if it does.
        part = math.log(r / first) / math.log(last / first)
        size = Size(*(round(a * (b / a) ** part) for a, b in zip(start, target, strict=True)))
        if size not in (start, target) and size not in sizes:
            sizes.append(size)
    return [Phase(k, size, _linear(size, base), dilation_for(size, base)) for k, size in enumerate([*sizes, Size(*target)], 1)]
