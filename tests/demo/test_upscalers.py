"""Enlarging before a phase: filters, model files, and whose pixels are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.core.types import Size
from apt_ext.demo.cli import main
from apt_ext.demo.job import run_job, through_pixels
from apt_ext.demo.model import load_model
from apt_ext.demo.pictures import to_tensor
from apt_ext.demo.sources import from_picture, from_words
from apt_ext.demo.upscalers import enlarger
from apt_ext.demo.wanted import Job
from apt_ext.options import Options, Schedule

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_noise((30, 22), 60).convert("RGB").resize((45, 34), Image.Resampling.BICUBIC)


@pytest.fixture
def doubling(tmp_path: Path) -> str:
    """A Real-ESRGAN compact network of the usual layout, 2x, whose last layer adds nothing to the repeated pixels."""
    pytest.importorskip("spandrel", reason="needs spandrel", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]  # what stands beside it may be broken, too
    wide = torch.nn.Conv2d(3, 8, 3).state_dict()
    last = torch.zeros(12, 8, 3, 3)
    weights = {"body.0.weight": wide["weight"], "body.0.bias": wide["bias"], "body.1.weight": torch.ones(8)}
    weights |= {"body.2.weight": torch.zeros(8, 8, 3, 3), "body.2.bias": torch.zeros(8), "body.3.weight": torch.ones(8)}
    weights |= {"body.4.weight": last, "body.4.bias": torch.zeros(12)}
    path = tmp_path / "double.pth"
    torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize(("name", "method"), [("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)])
def test_filters_are_pillows(name, method, picture):
    enlarge = enlarger(name, CPU)
    assert enlarge is not None
    assert enlarge(picture, (90, 68)).tobytes() == picture.resize((90, 68), method).tobytes()


def test_a_model_file_enlarges_until_it_is_large_enough(doubling, picture):
    enlarge = enlarger(doubling, CPU)
    assert enlarge is not None
    assert enlarge(picture, (90, 68)).tobytes() == picture.resize((90, 68), Image.Resampling.NEAREST).tobytes()
    four = picture.resize((180, 136), Image.Resampling.NEAREST).resize((120, 100), Image.Resampling.LANCZOS)
    assert enlarge(picture, (120, 100)).tobytes() == four.tobytes()


def test_a_large_picture_goes_through_a_model_in_tiles(doubling):
    large = Image.effect_noise((530, 300), 60).convert("RGB")
    enlarge = enlarger(doubling, CPU)
    assert enlarge is not None
    assert np.abs(np.asarray(enlarge(large, (1060, 600)), int) - np.asarray(large.resize((1060, 600), Image.Resampling.NEAREST), int)).max() <= 1


def test_the_first_phase_takes_the_pictures_own_pixels_and_later_ones_the_decoded(model, picture):
    source = from_picture(model, picture)
    asked = []

    def larger(image, size):
        asked.append(image)
        return image.resize(size, Image.Resampling.LANCZOS)

    upsample = through_pixels(model, source, larger)
    z = upsample(source.latent, Size(18, 24))
    assert torch.equal(z, model.encode(to_tensor(asked[0].resize((96, 72), Image.Resampling.LANCZOS))))
    assert asked[0].crop((0, 0, 45, 34)).tobytes() == picture.tobytes()
    upsample(z, Size(36, 48))
    assert asked[1].size == (96, 72)


def test_without_a_picture_of_ones_own_the_models_is_decoded(model):
    job = Job(2.0, schedule=Schedule(steps=4, strength=0.5), style="moss")
    source = from_words(model, job, steps=4)
    torch.testing.assert_close(source.picture, model.decode(source.latent))
    assert run_job(model, source, job).latent.shape == (1, 4, 32, 32)


def test_the_option_decides_and_latents_are_left_to_the_published_way(model, picture):
    source = from_picture(model, picture)
    jobs = {name: Job(2.0, Options(upscaler=name), Schedule(steps=4, strength=0.5)) for name in ("lanczos", "bicubic", "latent")}
    made = {name: run_job(model, source, job).latent for name, job in jobs.items()}
    assert not torch.equal(made["lanczos"], made["bicubic"])
    assert not torch.equal(made["lanczos"], made["latent"])
    assert enlarger("latent", CPU) is None


def test_a_model_file_works_from_the_command_line(doubling, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    arguments = ["upscale", str(tmp_path / "a.png"), "--scale", "2", "--steps", "5", "--upscaler", doubling, "--quiet", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    (made,) = (tmp_path / "out").glob("*.png")
    assert f"APT upscaler: {doubling}" in Image.open(made).info["parameters"]


def test_what_is_no_upscaler_is_refused_before_anything_is_made(picture, tmp_path, capsys):
    picture.save(tmp_path / "a.png")
    (tmp_path / "text.pth").write_text("no model")
    torch.save({"some.weight": torch.ones(3)}, tmp_path / "other.pth")
    for name, sentence in (
        ("missing.pth", "upscaler 'missing.pth' does not exist; use lanczos, bicubic, latent, or the path of a model file"),
        (str(tmp_path / "text.pth"), "is no upscaling model that can be read"),
        (str(tmp_path / "other.pth"), "is no upscaling model that can be read"),
    ):
        assert main(["upscale", str(tmp_path / "a.png"), "--upscaler", name, "--quiet", "-o", str(tmp_path / "out")]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("apt_ext: ")]
        assert len(said) == 1
        assert sentence in said[0]
        assert not (tmp_path / "out").exists()
