"""What tests of whole jobs ask of a picture, a processing object and the host."""

import inspect
import sys

import numpy as np
import pytest
from PIL import ImageFont

ON = {"enabled": True}
OURS_ON_SAMPLERS = {"sample_img2img", "get_sigmas", "get_timesteps", "callback_state"}

needs_letters = pytest.mark.skipif(
    not inspect.signature(ImageFont.load_default).parameters, reason="this Pillow has no letters of its own at any size, as the double draws them"
)


def pixels(picture):
    return np.asarray(picture, dtype=int)


def far(one, other):
    return np.abs(pixels(one) - pixels(other)).max()


def refusal(caught):
    """(status, sentence) of what the API was answered with."""
    assert type(caught.value) is sys.modules["fastapi"].HTTPException
    return caught.value.status_code, caught.value.detail


def left_on_p(p):
    kept = {"job"} if sys.modules["apt_ext.webui.state"].job_of(p) else set()
    return kept | {name for name in p.__dict__ if name.startswith("apt") or name in ("init", "sample_hr_pass")}


def nothing_left(host, samplers):
    assert samplers
    for sampler in samplers:
        assert not OURS_ON_SAMPLERS & set(sampler.__dict__)
        assert type(sampler.model_wrap_cfg).__module__.startswith("modules.")
        assert "apt_run" not in sampler.model_wrap_cfg.__dict__
    stage = host.model.first_stage_model
    assert "forward" not in stage.encoder.__dict__
    assert "forward" not in stage.decoder.__dict__
