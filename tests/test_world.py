"""The procedural world: one scene at any resolution."""

import numpy as np
import pytest
from PIL import Image

from apt_ext.demo.world import RADIUS_MAX, RADIUS_MIN, STYLES, make_scene, render


@pytest.mark.parametrize("style", STYLES)
def test_renders_of_two_resolutions_show_the_same_scene(style):
    scene = make_scene(style, 3)
    large, small = render(scene, 128), render(scene, 64)
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), float)
    assert 10 * np.log10(255**2 / np.mean((shrunk - small) ** 2)) > 30


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
    radii = np.array([leaf.radius for leaf in make_scene("autumn", 1, extent=3.0).leaves])
    assert radii.min() >= RADIUS_MIN
    assert radii.max() <= RADIUS_MAX
    # r^-1.5 between the limits: half of all radii lie below the middle of r^-0.5.
    middle = (2 / (RADIUS_MIN**-0.5 + RADIUS_MAX**-0.5)) ** 2
    assert np.mean(radii < middle) == pytest.approx(0.5, abs=0.02)
