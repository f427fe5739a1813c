"""The colour fix on every way in: the coarse colours of what comes out are those of what went in."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.double.jobs import ON, far, pixels

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.fixture(autouse=True)
def shifted(host):
    """An autoencoder that brightens by itself, as real ones do."""
    decode = host.model.first_stage_model.decoder.forward

    class Brighter(torch.nn.Module):
        def forward(self, z):
            return decode(z) + 0.1

    host.model.first_stage_model.decoder = Brighter()


def small(picture, size=(64, 64)):
    return pixels(picture.convert("RGB").resize(size, Image.Resampling.BOX))


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
@pytest.mark.parametrize("size", [128, 192])
def test_img2img_keeps_the_given_pictures_colours(host, picture, upscaler, size):
    def shift(width):
        settings = {"upscaler": upscaler, "colour_fix": width}
        made = host.run(host.picture_job(settings, init_images=[picture], width=size, height=size, denoising_strength=0.3))[0]
        return np.abs((small(made) - pixels(picture.convert("RGB"))).mean(axis=(0, 1))).max()

    assert shift(0.0) > 5
    assert shift(4.0) < 1.5


@pytest.mark.parametrize("upscaler", ["Lanczos", "Latent"])
def test_hires_keeps_the_first_pass_s_colours(host, upscaler):
    plain = host.run(host.text_job(False, enable_hr=False, cfg_scale=1.0))[0]

    def shift(width):
        made = host.run(host.text_job(ON | {"colour_fix": width}, hr_upscaler=upscaler, cfg_scale=1.0))[0]
        return np.abs((small(made) - pixels(plain)).mean(axis=(0, 1))).mean()

    # Some of the double's pictures is beyond black and white, where no fix can move it.
    assert shift(4.0) < 0.5 * shift(0.0)


def test_the_dropdown_entry_does_too(host, picture):
    p = host.picture_job(init_images=[picture], denoising_strength=0.3)
    p.scripts = host.script(False)
    (made,) = host.adapter("script").APTUpscaleScript().run(p, {"scale": 2.0, "colour_fix": 4.0})
    assert np.abs((small(made) - pixels(picture.convert("RGB"))).mean(axis=(0, 1))).max() < 1.5


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_every_picture_of_every_batch_gets_its_own_colours(host, picture, job_of_kind, kind):
    given: dict[str, Any] = {"init_images": [picture, picture.rotate(90).convert("L").convert("RGB")]} if kind == "picture" else {"n_iter": 2}
    together = host.run(job_of_kind(kind, batch_size=2, **given))
    assert len(together) == (2 if kind == "picture" else 4)
    for index, made in enumerate(together):
        alone = {"init_images": [given["init_images"][index]]} if kind == "picture" else {}
        assert far(made, host.run(job_of_kind(kind, seed=11 + index, **alone))[0]) <= 1


def test_a_mask_s_inside_is_left_alone(host, picture):
    large = picture.resize((128, 128))
    mask = Image.new("L", large.size, 0)
    mask.paste(255, (64, 0, 128, 128))
    fixed, plain = (
        host.run(host.picture_job(ON | {"colour_fix": width}, init_images=[large], image_mask=mask, denoising_strength=0.5))[0] for width in (4.0, 0.0)
    )
    change = np.abs(pixels(fixed) - pixels(plain))
    assert change[:, 76:].max() <= 1
    kept = (pixels(fixed) - pixels(large.convert("RGB")))[:, :52]
    assert np.abs(kept.mean(axis=(0, 1))).max() < 2 < np.abs((pixels(plain) - pixels(large.convert("RGB")))[:, :52].mean(axis=(0, 1))).max()


def test_the_fix_runs_before_the_picture_is_handed_to_others(host, picture, monkeypatch):
    seen = []
    script = host.adapter("script").APTScript
    after = script.postprocess_image
    monkeypatch.setattr(script, "postprocess_image", lambda self, p, pp, *args: seen.append(pp.image) or after(self, p, pp, *args))
    made = host.run(host.picture_job(ON, init_images=[picture]))[0]
    assert far(seen[0], made) == 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_it_is_written_and_nothing_else_happens_where_apt_is_off(host, job_of_kind, kind):
    p = job_of_kind(kind, {"enabled": True, "colour_fix": 2.5})
    host.run(p)
    assert p.extra_generation_params["APT colour fix"] == 2.5
    off = job_of_kind(kind)
    off.scripts = host.script(False)
    plain = job_of_kind(kind)
    plain.scripts = None
    assert far(host.run(off)[0], host.run(plain)[0]) == 0
