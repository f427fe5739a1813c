"""The procedural world of the embedded model: dead leaves at every scale.

A scene is a list of shapes in world coordinates, painted back to front, so the very same scene renders at any resolution and
in any region: the true 4x picture of a 64 px view is simply `render(scene, 256)`. Radii follow the density r^-1.5 between
1/256 and 0.3 of a view, after Lee, Mumford and Huang, "Occlusion models for natural images" (IJCV 2001), with a flatter
exponent than their r^-3: at 64 px that is indistinguishable from noise, and r^-2 still buries its large shapes under specks
that latents of 16 x 16 cannot hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STYLES", "Leaf", "Scene", "make_scene", "render"]

RADIUS_MIN, RADIUS_MAX, RADIUS_EXPONENT = 1 / 256, 0.3, 1.5
LEAVES_PER_UNIT_AREA = 600


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
    """One opaque shape. Lengths are in units of a view's side; `colour` is RGB in 0..1; `texture` = (amplitude, frequency, phase)."""

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
    amplitude = look.texture * rng.uniform(0.3, 1.0, n)
    frequency = rng.uniform(3.0, 7.0, n)
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
            (float(amplitude[i]), float(frequency[i]), float(phase[i])),
        )
        for i in range(n)
    )
    r, g, b = np.clip(palette.mean(0) * tint * 0.6, 0.03, 0.97)
    return Scene(style, seed, extent, (float(r), float(g), float(b)), leaves)


def _outline(shape: str, u: Plane, v: Plane) -> Plane:
    """A level function in the leaf's own frame: negative inside, zero on the outline, slope about one across it."""
    if shape == "ellipse":
        return np.sqrt(u * u + v * v) - 1
    if shape == "lens":
        return (np.abs(v) + u * u - 1) * 0.8
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85
    return (np.abs(u) + np.abs(v) - 1) * 0.7  # diamond


def _pattern(leaf: Leaf, u: Plane, v: Plane, blur: float) -> Plane:
    """Brightness over a leaf, about zero mean.

    Detail finer than a pixel (`blur` = pixels over radius) fades out, so that renders of one scene at two resolutions agree.
    """
    amplitude, frequency, phase = leaf.texture
    fade = amplitude * np.exp(-((frequency * blur) ** 2) / 6)
    if leaf.shape == "lens":
        veins = np.cos(frequency * 2 * (u - 0.9 * np.abs(v)) + phase)
        rib = np.exp(-((v / 0.09) ** 2)) * np.exp(-((10 * blur) ** 2) / 6)
        return fade * veins - 1.4 * amplitude * rib
    if leaf.shape == "ellipse":
        return fade * np.sin(frequency * u + phase) * np.sin(frequency * 1.3 * v - phase)
    return fade * np.cos(frequency * 1.5 * v + phase)


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
        dx = (xs[x0:x1] - np.float32(leaf.x))[None, :] / np.float32(leaf.radius)
        dy = (ys[y0:y1] - np.float32(leaf.y))[:, None] / np.float32(leaf.radius)
        c, s = np.float32(np.cos(leaf.angle)), np.float32(np.sin(leaf.angle))
        u = c * dx + s * dy
        v = (c * dy - s * dx) / np.float32(leaf.aspect)
        pixel = 1 / (scale * leaf.radius)
        # A leaf thinner than a pixel covers only its share of it: widen the edge, keep the area.
        thin = min(1.0, leaf.aspect / pixel * 1.2)
        edge = max(pixel / leaf.aspect, pixel)
        alpha = np.clip(0.5 - _outline(leaf.shape, u, v) / edge, 0, 1) * thin
        light = 1 + leaf.shade * np.clip(v, -1, 1) + _pattern(leaf, u, v, pixel)
        paint = light[..., None] * np.array(leaf.colour, np.float32)
        patch = canvas[y0:y1, x0:x1]
        patch += alpha[..., None] * (paint - patch)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
