"""The procedural world of the embedded model: outlined shapes that overlap like dead leaves, with detail for every enlargement.

A scene is a list of shapes in world coordinates, painted back to front, so the very same scene renders at any resolution and
in any region: the true 4x picture of a 64 px view is simply `render(scene, 256)`. The shapes follow Lee, Mumford and Huang,
"Occlusion models for natural images" (IJCV 2001), but are few and large, so that 16 x 16 latents can hold every one of them:
radii between 0.08 and 0.42 of a view under the density r^-1.2 (theirs is r^-3, which is noise at 64 px). What is new in an
enlargement are lines of constant width and patterns of constant wavelength *in the world*: outlines sharpen, and veins, weaves
and stripes, too fine for 64 px, appear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STYLES", "Leaf", "Scene", "make_scene", "render"]

RADIUS_MIN, RADIUS_MAX, RADIUS_EXPONENT = 0.08, 0.42, 1.2  # in views, as all lengths
LEAVES_PER_UNIT_AREA = 36
OUTLINE, INK = 0.014, 0.5  # width of the line around a shape, and its brightness as a share of the shape's
RIB = 0.016  # width of the line along the middle of a lens
WAVELENGTH = (0.032, 0.040)  # 2.0 to 2.6 px at 64 px, about the finest that a picture can hold
SOFTNESS = 0.9  # px: patterns are seen through a Gaussian of this standard deviation, which leaves nothing of them at 64 px


@dataclass(frozen=True)
class Style:
    """How one kind of scene looks: mean colours (RGB, 0..1) and the shapes they come in."""

    palette: tuple[tuple[float, float, float], ...]
    shapes: tuple[str, ...]
    aspect: tuple[float, float]
    texture: float


Plane = NDArray[np.floating[Any]]

STYLES: dict[str, Style] = {
    "autumn": Style(
        ((0.62, 0.36, 0.18), (0.72, 0.53, 0.25), (0.45, 0.22, 0.16), (0.53, 0.45, 0.30), (0.34, 0.27, 0.20), (0.78, 0.68, 0.45)),
        ("lens",),
        (0.35, 0.65),
        0.16,
    ),
    "moss": Style(
        ((0.30, 0.40, 0.22), (0.45, 0.52, 0.30), (0.20, 0.28, 0.20), (0.58, 0.60, 0.42), (0.36, 0.34, 0.24), (0.66, 0.70, 0.58)),
        ("lens", "ellipse"),
        (0.45, 0.95),
        0.13,
    ),
    "pebbles": Style(
        ((0.52, 0.53, 0.55), (0.68, 0.66, 0.61), (0.36, 0.39, 0.44), (0.60, 0.54, 0.46), (0.26, 0.27, 0.30), (0.80, 0.79, 0.75)),
        ("ellipse",),
        (0.6, 1.0),
        0.12,
    ),
    "mosaic": Style(
        ((0.28, 0.40, 0.50), (0.66, 0.44, 0.36), (0.74, 0.68, 0.58), (0.22, 0.27, 0.36), (0.50, 0.58, 0.58), (0.82, 0.76, 0.60)),
        ("square", "diamond"),
        (0.5, 1.0),
        0.14,
    ),
}


@dataclass(frozen=True)
class Leaf:
    """One opaque shape. Lengths are in units of a view's side; `colour` is RGB in 0..1; `texture` = (amplitude, wavelength, phase)."""

    shape: str
    x: float
    y: float
    radius: float
    aspect: float
    angle: float
    colour: tuple[float, float, float]
    shade: float
    texture: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Leaves in painting order over a background; `extent` is the side of the square they cover, from the origin."""

    style: str
    seed: int
    extent: float
    background: tuple[float, float, float]
    leaves: tuple[Leaf, ...]


def _radii(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Inverse-transform samples of the truncated power law r^-RADIUS_EXPONENT."""
    k = 1 - RADIUS_EXPONENT
    low, high = RADIUS_MIN**k, RADIUS_MAX**k
    return (low + (high - low) * rng.random(n)) ** (1 / k)


def make_scene(style: str, seed: int, extent: float = 1.0) -> Scene:
    """Draw a scene.

    Args:
        style: a key of `STYLES`.
        seed: the same seed, style and extent give the same scene.
        extent: side of the covered square, in views (1 = one picture).

    Raises:
        ValueError: for a style that does not exist.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} does not exist; use one of {', '.join(STYLES)}")
    look = STYLES[style]
    rng = np.random.default_rng([seed, list(STYLES).index(style)])
    n = round(LEAVES_PER_UNIT_AREA * (extent + 2 * RADIUS_MAX) ** 2)
    radius = _radii(rng, n)
    centre = rng.uniform(-RADIUS_MAX, extent + RADIUS_MAX, (n, 2))
    # A scene uses a few of its style's colours, tinted as one, so that whole pictures differ from each other.
    palette = np.array(look.palette)[rng.permutation(len(look.palette))[: rng.integers(3, len(look.palette) + 1)]]
    tint = 1 + 0.10 * rng.standard_normal(3)
    colour = np.clip(palette[rng.integers(len(palette), size=n)] * tint * (1 + 0.16 * rng.standard_normal((n, 1))), 0.03, 0.97)
    shape = rng.integers(len(look.shapes), size=n)
    aspect = rng.uniform(*look.aspect, n)
    angle = rng.uniform(0, 2 * np.pi, n)
    shade = 0.12 * rng.standard_normal(n)
    amplitude = look.texture * rng.uniform(0.5, 1.2, n)
    wavelength = rng.uniform(*WAVELENGTH, n)
    phase = rng.uniform(0, 2 * np.pi, n)
    leaves = tuple(
        Leaf(
            look.shapes[shape[i]],
            float(centre[i, 0]),
            float(centre[i, 1]),
            float(radius[i]),
            float(aspect[i]),
            float(angle[i]),
            (float(colour[i, 0]), float(colour[i, 1]), float(colour[i, 2])),
            float(shade[i]),
            (float(amplitude[i]), float(wavelength[i]), float(phase[i])),
        )
        for i in range(n)
    )
    r, g, b = np.clip(palette.mean(0) * tint * 0.6, 0.03, 0.97)
    return Scene(style, seed, extent, (float(r), float(g), float(b)), leaves)


def _distance(shape: str, u: Plane, v: Plane, aspect: float) -> Plane:
    """Distance to the outline to first order, in radii, negative inside; u and v are the leaf's own coordinates, both 1 on its axes' ends."""
    if shape == "square":
        return np.maximum(np.abs(u) - 0.85, (np.abs(v) - 0.85) * aspect)
    if shape == "ellipse":
        level = np.hypot(u, v)
        return (level - 1) * level / np.maximum(np.hypot(u, v / aspect), 1e-6)
    if shape == "lens":
        return (np.abs(v) + u * u - 1) / np.hypot(2 * u, 1 / aspect)
    return (np.abs(u) + np.abs(v) - 1) / np.float32(np.hypot(1, 1 / aspect))  # diamond


def _pattern(leaf: Leaf, a: Plane, b: Plane, pixel: float) -> Plane:
    """Brightness over a leaf, about zero mean; a and b are lengths along and across it, `pixel` is a pixel's side in views.

    Detail that is too fine for the pixels fades out, so that renders of one scene at two resolutions agree.
    """
    amplitude, wavelength, phase = leaf.texture
    k = 2 * np.pi / wavelength
    fade = amplitude * np.exp(-((k * SOFTNESS * pixel) ** 2) / 2)
    if leaf.shape == "lens":
        return fade * np.cos(k * (0.8 * a - 0.6 * np.abs(b)) + phase)
    if leaf.shape == "ellipse":
        return fade * np.sin(k * np.sqrt(0.5) * a + phase) * np.sin(k * np.sqrt(0.5) * b - phase)
    return fade * np.cos(k * b + phase)


def render(scene: Scene, size: int, region: tuple[float, float, float, float] | None = None) -> NDArray[np.uint8]:
    """Render a square region of a scene with analytic anti-aliasing.

    Args:
        scene: from `make_scene`.
        size: pixels along the region's width.
        region: (left, top, width, height) in views; the whole scene when left out.

    Returns:
        (rows, size, 3) uint8 RGB.
    """
    left, top, width, height = region or (0.0, 0.0, scene.extent, scene.extent)
    scale = size / width
    rows, cols = round(height * scale), size
    canvas = np.empty((rows, cols, 3), np.float32)
    canvas[:] = scene.background
    xs = (np.arange(cols, dtype=np.float32) + 0.5) / scale + left
    ys = (np.arange(rows, dtype=np.float32) + 0.5) / scale + top
    for leaf in scene.leaves:
        reach = leaf.radius * 1.25 + 1 / scale
        x0, x1 = max(0, int((leaf.x - reach - left) * scale)), min(cols, int((leaf.x + reach - left) * scale) + 2)
        y0, y1 = max(0, int((leaf.y - reach - top) * scale)), min(rows, int((leaf.y + reach - top) * scale) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = (xs[x0:x1] - np.float32(leaf.x))[None, :], (ys[y0:y1] - np.float32(leaf.y))[:, None]
        c, s = np.float32(np.cos(leaf.angle)), np.float32(np.sin(leaf.angle))
        a, b = c * dx + s * dy, c * dy - s * dx
        v = b / np.float32(leaf.radius * leaf.aspect)
        distance = _distance(leaf.shape, a / np.float32(leaf.radius), v, leaf.aspect) * np.float32(leaf.radius)
        cover, inner = (np.clip(0.5 - (distance + inset) * np.float32(scale), 0, 1) for inset in (0, OUTLINE))
        light = 1 + leaf.shade * np.clip(v, -1, 1) + _pattern(leaf, a, b, 1 / scale)
        if leaf.shape == "lens":
            light *= 1 - (1 - INK) * np.clip(0.5 + (RIB / 2 - np.abs(b)) * scale, 0, min(1, RIB * scale))
        light *= INK + (1 - INK) * inner
        paint = light[..., None] * np.array(leaf.colour, np.float32)
        patch = canvas[y0:y1, x0:x1]
        patch += cover[..., None] * (paint - patch)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
