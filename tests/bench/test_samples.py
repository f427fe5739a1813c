"""The measures of the model's own pictures: blind where there is nothing to find, sharp where there is."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apt_ext.demo.model import load_model
from bench.quality.kernel import features, whitening
from bench.samples import accuracy, distance, made_pictures, main, photo_pictures, real_pictures, reconstruction, whole_photographs


@pytest.fixture(scope="module")
def real():
    return real_pictures(384, 0)


def test_real_pictures_repeat_and_no_two_are_one_view(real):
    assert real.shape == (384, 3, 64, 64)
    assert torch.equal(real_pictures(8, 40), real[40:48])
    assert len({picture.numpy().tobytes() for picture in real}) == len(real)


def test_two_sets_of_one_kind_are_near_and_a_blurred_one_is_far(real):
    whiten = whitening(features(real[256:]))
    same = distance(real[:128], real[128:256], whiten)
    blurred = torch.nn.functional.avg_pool2d(real[:128], 3, 1, 1, count_include_pad=False)
    other = distance(blurred, real[128:256], whiten)
    assert same["low"] < 0 < same["high"]
    assert other["low"] > same["high"]


def test_the_judge_guesses_where_there_is_nothing_to_tell_and_sees_a_blur(real):
    same = accuracy(real[:192], real[192:], rounds=6)
    assert abs(same["value"] - 0.5) < 4 * same["error"]
    blurred = torch.nn.functional.avg_pool2d(real[:192], 3, 1, 1, count_include_pad=False)
    assert accuracy(blurred, real[192:], rounds=6)["value"] > 0.85


def test_made_pictures_have_the_colours_of_their_styles():
    """The world's styles in turn: moss is greener than autumn in pictures that the model makes, too."""
    made = made_pictures(load_model(), 32, steps=8)
    greenness = made[:, 1].mean((1, 2)) - made[:, 0].mean((1, 2))
    assert float(greenness[1::4].mean()) > float(greenness[0::4].mean()) + 0.1


def needs_photographs():
    pytest.importorskip("sklearn", reason="needs the photographs inside scikit-learn")
    pytest.importorskip("skimage", reason="needs the photographs inside scikit-image")


def test_a_colour_that_is_off_counts_as_one(real):
    needs_photographs()

    shifted: Any = SimpleNamespace(encode=lambda x: x, decode=lambda z: z + 2 / 127.5)
    assert reconstruction(shifted, real[:8])["colour"] == pytest.approx(2, rel=1e-3)
    assert photo_pictures().shape[1:] == (3, 64, 64)
    assert whole_photographs().shape == (16, 3, 256, 256)


def test_the_command_keeps_other_rows(tmp_path, monkeypatch):
    needs_photographs()
    out = tmp_path / "samples.json"
    out.write_text(json.dumps({"older": {"count": 8}}))
    monkeypatch.setattr("bench.samples.RESAMPLES", 20)
    main(["--count", "64", "--steps", "4", "--name", "new", "--out", str(out)])
    rows = json.loads(out.read_text())
    assert rows["older"] == {"count": 8}
    assert rows["new"]["kernel distance"]["made"]["value"] > rows["new"]["kernel distance"]["real, other"]["value"]
    assert 10 < rows["new"]["reconstruction"]["photographs, 256 px"]["psnr"] < 60
    with pytest.raises(SystemExit):
        main(["--count", "30", "--out", str(out)])
