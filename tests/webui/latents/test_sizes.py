"""Sizes that the host's fields mean."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apt_ext.core.phases import plan_phases
from apt_ext.webui.latents.sizes import hires_enlarged, hires_sizes, picture_sizes
from apt_ext.webui.model import FACTOR

SIDES = st.integers(8, 600).map(lambda n: n * FACTOR)
PIXELS = st.integers(16, 5000)
NATIVE = st.sampled_from([512, 768, 1024])
MODES = st.integers(0, 3)
MANY = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize(
    ("first", "enlarged", "sizes"),
    [
        ((512, 512), (1024, 1024), ((64, 64), (128, 128))),
        ((832, 1216), (1664, 2432), ((152, 104), (304, 208))),
        ((1216, 832), (1824, 1248), ((104, 152), (156, 228))),
        ((64, 64), (204, 100), ((8, 8), (12, 25))),  # what does not fill a latent pixel is dropped
    ],
)
def test_hires_sizes_are_rows_and_columns_of_latent_pixels(first, enlarged, sizes):
    assert hires_sizes(first, enlarged) == sizes


@pytest.mark.usefixtures("settings_page")
@pytest.mark.parametrize(("width", "height", "scale"), [(64, 64, 2.0), (96, 64, 1.5), (64, 72, 1.4)])
def test_hires_sizes_are_those_that_a_job_samples(host, monkeypatch, width, height, scale):
    kind, sampled = host.sd_samplers_kdiffusion.KDiffusionSampler, []
    sample = kind.sample
    monkeypatch.setattr(kind, "sample", lambda self, p, x, *rest, **more: sampled.append(tuple(x.shape[-2:])) or sample(self, p, x, *rest, **more))
    (made,) = host.run(host.text_job({"enabled": True}, width=width, height=height, hr_scale=scale))
    start, target = hires_sizes((width, height), (int(width * scale), int(height * scale)))
    assert [start] == sampled
    assert (target[1] * FACTOR, target[0] * FACTOR) == made.size


@MANY
@given(PIXELS, PIXELS, st.integers(0, 5), st.integers(0, 5))
def test_what_the_host_cuts_off_is_not_in_the_target(width, height, columns, rows):
    _, whole = hires_sizes((64, 64), (width, height))
    _, cut = hires_sizes((64, 64), (width, height), (columns, rows))
    assert (whole[0] - cut[0], whole[1] - cut[1]) == (rows, columns)


@pytest.mark.parametrize(
    ("first", "asked"),
    [((832, 1216), (1024, 1024)), ((768, 512), (640, 640)), ((1216, 832), (1080, 1920)), ((512, 512), (1024, 1024)), ((512, 768), (1024, 1536))],
)
def test_a_target_of_another_aspect_is_planned_from_the_part_that_is_kept(first, asked):
    start, target = hires_sizes(first, *hires_enlarged(first, asked))
    assert target == (asked[1] // FACTOR, asked[0] // FACTOR)
    assert abs(start[0] / start[1] - asked[1] / asked[0]) < 0.02 * asked[1] / asked[0]
    assert start[0] == first[1] // FACTOR or start[1] == first[0] // FACTOR
    assert plan_phases(start, start, target)[-1].size == target


@MANY
@given(PIXELS, PIXELS, SIDES, SIDES, MODES, NATIVE)
def test_an_img2img_job_reaches_the_asked_size_from_below_in_its_aspect(given_width, given_height, width, height, mode, native):
    start, target = picture_sizes((given_width, given_height), (width, height), mode, native)
    assert target == (height // FACTOR, width // FACTOR)
    assert 1 <= start[0] <= target[0]
    assert 1 <= start[1] <= target[1]
    assume(min(start) > 1)
    shares = [part / whole for part, whole in zip(start, target, strict=True)]
    assert abs(shares[0] - shares[1]) <= 0.5 / target[0] + 0.5 / target[1] + 1e-9


@MANY
@given(PIXELS, PIXELS, SIDES, SIDES, MODES, NATIVE)
def test_an_img2img_job_starts_no_smaller_than_the_model_composes(given_width, given_height, width, height, mode, native):
    (rows, columns), target = picture_sizes((given_width, given_height), (width, height), mode, native)
    least = min(native**2, width * height) / FACTOR**2
    assert (rows + 0.5) * (columns + 0.5) >= least * (1 - 1e-9)
    assert plan_phases((rows, columns), (rows, columns), target)[-1].size == target


@MANY
@given(st.integers(64, 200).map(lambda n: n * 8), st.integers(64, 200).map(lambda n: n * 8), st.integers(1, 4), MODES)
def test_a_picture_of_the_same_aspect_starts_at_its_own_size(width, height, scale, mode):
    start, _ = picture_sizes((width, height), (scale * width, scale * height), mode, 512)
    assert start == (height // FACTOR, width // FACTOR)


def test_cutting_and_fitting_use_different_parts_of_the_picture():
    wide, asked = (2048, 1024), (2048, 2048)
    assert picture_sizes(wide, asked, 0, 512)[0] == (181, 181)
    assert picture_sizes(wide, asked, 1, 512)[0] == (128, 128)
    assert picture_sizes(wide, asked, 2, 512)[0] == (256, 256)


def test_a_small_picture_starts_at_the_native_size():
    assert picture_sizes((100, 100), (2048, 1024), 0, 512) == ((45, 91), (128, 256))


def test_an_asked_size_below_the_native_one_is_the_start():
    assert picture_sizes((100, 100), (256, 256), 0, 512) == ((32, 32), (32, 32))
