"""Where hardly anything is drawn anew, a picture keeps its mean colour: what the phases do to the latents shifts none."""

import numpy as np
import pytest

from tests.host.double.jobs import pixels

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.fixture(autouse=True)
def pointwise(host, monkeypatch):
    """A model that looks at nothing around a pixel and at no prompt: the double's own moves colours, and in a window otherwise than in the whole picture."""

    def apply_model(x, t, cond):
        return (1 - host.model.alphas_cumprod[t.round().long()]).sqrt()[:, None, None, None] * x

    monkeypatch.setattr(host.model, "apply_model", apply_model)


EVERYTHING_OFF = {"method": "multidiffusion", "matching": 0.0, "gamma": 0.0, "skip_residual": False, "reanchor": "off"}


def mean_colour(picture):
    return pixels(picture).mean((0, 1))


@pytest.mark.parametrize("settings", [{}, {"matching": 1.0, "gamma": 0.0}, EVERYTHING_OFF, {"phases": "progressive"}], ids=str)
def test_at_a_low_strength_the_mean_colour_is_the_host_s_own(host, picture, settings):
    """The double's autoencoder is linear and knows no places, so nothing but the phases can shift colours. Sizes where several windows meet."""
    given = {"init_images": [picture], "width": 192, "height": 192, "denoising_strength": 0.02, "steps": 50}
    own = host.picture_job(False, **given)
    own.scripts = None
    expected = mean_colour(host.run(own)[0])
    made = mean_colour(host.run(host.picture_job(settings | {"colour_fix": 0.0}, **given))[0])
    np.testing.assert_allclose(made, expected, atol=1)


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_at_a_low_strength_the_mean_colour_of_a_hires_pass_is_the_host_s_own(host, monkeypatch, upscaler):
    sample = host.sd_samplers_kdiffusion.KDiffusionSampler.sample
    # What the double dreams up leaves the range of colours; where it is cut there, pixels and latents have different means.
    monkeypatch.setattr(host.sd_samplers_kdiffusion.KDiffusionSampler, "sample", lambda *args, **more: 0.15 * sample(*args, **more))
    given = {"hr_scale": 3.0, "denoising_strength": 0.02, "hr_second_pass_steps": 2, "hr_upscaler": upscaler}
    own = host.text_job(False, **given)
    own.scripts = None
    expected = mean_colour(host.run(own)[0])
    np.testing.assert_allclose(mean_colour(host.run(host.text_job({"colour_fix": 0.0}, **given))[0]), expected, atol=1)
