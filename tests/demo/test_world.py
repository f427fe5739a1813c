"""The procedural world: one scene at any resolution."""

import numpy as np
import pytest
from PIL import Image

from apt_ext.demo.world import LEAVES_PER_UNIT_AREA, OUTLINE, RADIUS_EXPONENT, RADIUS_MAX, RADIUS_MIN, STYLES, Leaf, Scene, make_scene, render


def shrunk(picture, size):
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX), float)


def lone(shape, radius=0.4, aspect=1.0, wavelength=0.035, amplitude=0.0):
    """One grey shape in the middle of a black view, unturned."""
    leaf = Leaf(shape, 0.5, 0.5, radius, aspect, 0.0, (0.5, 0.5, 0.5), 0.0, (amplitude, wavelength, 0.0))
    return Scene("pebbles", 0, 1.0, (0.0, 0.0, 0.0), (leaf,))


@pytest.mark.parametrize("style", STYLES)
def test_renders_of_two_resolutions_show_the_same_scene(style):
    scene = make_scene(style, 3)
    for size, least in ((64, 26), (128, 30)):
        error = shrunk(render(scene, 2 * size), size) - render(scene, size)
        assert 10 * np.log10(255**2 / np.mean(error**2)) > least


def test_a_region_is_that_part_of_the_whole():
    scene = make_scene("pebbles", 5, extent=1.5)
    whole = render(scene, 96)
    part = render(scene, 32, (0.5, 0.25, 0.5, 0.5))
    assert np.array_equal(part, whole[16:48, 32:64])


def test_scenes_repeat_and_differ_by_seed_and_style():
    assert make_scene("moss", 1) == make_scene("moss", 1)
    assert not np.array_equal(render(make_scene("moss", 1), 32), render(make_scene("moss", 2), 32))
    with pytest.raises(ValueError, match="style 'sand' does not exist"):
        make_scene("sand", 1)


def test_radii_follow_the_power_law():
    radii = np.concatenate([[leaf.radius for leaf in make_scene("autumn", seed, extent=3.0).leaves] for seed in range(8)])
    assert len(radii) == 8 * round(LEAVES_PER_UNIT_AREA * (3 + 2 * RADIUS_MAX) ** 2)
    assert radii.min() >= RADIUS_MIN
    assert radii.max() <= RADIUS_MAX
    # r^-e between the limits: half of all radii lie below the middle of r^(1 - e).
    k = 1 - RADIUS_EXPONENT
    middle = ((RADIUS_MIN**k + RADIUS_MAX**k) / 2) ** (1 / k)
    assert np.mean(radii < middle) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", ["ellipse", "lens", "square", "diamond"])
def test_an_outline_is_equally_wide_at_every_resolution_and_place(shape):
    """Measured along both axes of a shape of aspect 1/2, from its rim inwards, in views."""
    for size in (256, 512):
        picture = render(lone(shape, aspect=0.5), size)[..., 0].astype(float)
        fill = picture[size // 2, size // 3] if shape != "lens" else picture[size // 2 - size // 16, size // 2]
        across = picture[: size // 2, size // 2]
        width = np.clip((fill - across[across > 0]) / (fill / 2), 0, 1)[: size // 8].sum() / size
        slope = 1 if shape in ("ellipse", "lens") else {"square": 1, "diamond": np.hypot(1, 0.5)}[shape]
        assert width == pytest.approx(OUTLINE * slope, abs=0.15 * OUTLINE + 1 / size)


@pytest.mark.parametrize("shape", ["ellipse", "lens", "square", "diamond"])
def test_patterns_are_hidden_at_64_pixels_and_appear_when_enlarged(shape):
    def contrast(size):
        plain, patterned = (render(lone(shape, amplitude=amplitude), size).astype(float) for amplitude in (0, 0.16))
        middle = slice(3 * size // 8, 5 * size // 8)
        return np.std((patterned - plain)[middle, middle])

    small, medium, large = (contrast(size) for size in (64, 128, 256))
    assert small < 0.1 * large
    assert small < medium < large
    assert large > 4  # of 255
