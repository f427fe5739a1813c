"""Samplers that choose their own noise levels, and jobs without the skip residual, which only those can follow that do not."""

import numpy as np
import pytest

from apt_ext.core.plan import PhaseSetup
from tests.host.double.jobs import ON, nothing_left, pixels, refusal

pytestmark = pytest.mark.usefixtures("settings_page")
FREE = ("dpm_fast", "dpm_adaptive", "restart", "unipc")


@pytest.mark.parametrize("sampler", FREE)
@pytest.mark.parametrize("settings", [{"method": "multidiffusion"}, {"skip_residual": False}])
def test_samplers_that_choose_their_own_steps_run_without_a_skip_residual(host, samplers, sampler, settings):
    p = host.text_job(settings, sampler_name=sampler, steps=8, hr_scale=3.0)
    (made,) = host.run(p)
    assert made.size == (192, 192)
    assert pixels(made).std() > 5
    assert not p.scripts.reports
    nothing_left(host, samplers)


@pytest.mark.parametrize("sampler", FREE)
def test_with_one_they_are_refused(host, sampler):
    with pytest.raises(Exception, match="turn the skip residual off") as caught:
        host.run(host.text_job(ON, sampler_name=sampler, steps=8, is_api=True))
    assert refusal(caught)[0] == 422
    assert not host.model.calls


@pytest.mark.parametrize("sampler", FREE)
def test_a_schedule_for_the_scale_raises_where_they_begin(host, monkeypatch, sampler):
    levels, begin = [], host.engine.PhaseRun.begin
    monkeypatch.setattr(host.engine.PhaseRun, "begin", lambda self, x, t: levels.append(self.coordinates.level(t)) or begin(self, x, t))
    highest = []
    for gamma in (0.0, 0.75):
        levels.clear()
        host.run(host.text_job({"method": "multidiffusion", "gamma": gamma}, sampler_name=sampler, steps=8, denoising_strength=0.4))
        highest.append(max(levels))
    assert highest[1] > 1.3 * highest[0]


@pytest.mark.parametrize("sampler", FREE)
def test_their_windows_move_from_step_to_step(host, monkeypatch, sampler):
    steps, fuse = set(), PhaseSetup.fuse
    monkeypatch.setattr(PhaseSetup, "fuse", lambda self, calls, step: fuse(self, calls, lambda: steps.add(step()) or step()))
    host.run(host.text_job({"method": "multidiffusion"}, sampler_name=sampler, steps=8))
    assert len(steps) >= 5


@pytest.mark.parametrize("sampler", FREE)
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_bar_only_grows_and_ends_full(host, job_of_kind, kind, sampler):
    seen = []

    def on_call():
        state = host.shared.state
        share = state.sampling_step / state.sampling_steps if state.sampling_steps else 0
        if state.textinfo or sampler != "dpm_adaptive":  # in the host's own first pass this one takes more steps than the host has told its bar
            seen.append((state.job_no + share) / state.job_count)

    host.model.on_call = on_call
    scaled = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    host.run(job_of_kind(kind, {"method": "multidiffusion", "window_batch": 2, "phases": "double"}, sampler_name=sampler, steps=8, **scaled))
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert host.shared.state.job_no == host.shared.state.job_count


@pytest.mark.parametrize("sampler", ["dpm_fast", "unipc"])
def test_the_plan_counts_such_samplers_and_says_that_it_is_an_estimate(host, picture, sampler):
    settings = {"method": "multidiffusion", "colour_fix": 0.0}
    asked = {"img2img": True, "target": [192, 192], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": sampler}
    made = host.panel.plan(asked | {"scheduler": "Automatic", "settings": settings})
    assert made["notes"] == [host.panel.LEVELS_NOTE]
    host.run(host.picture_job(settings, init_images=[picture], width=192, height=192, sampler_name=sampler, steps=8))
    assert sum(call[0] // 2 for call in host.model.calls) == pytest.approx(made["evaluations"], rel=0.2)


def test_the_skip_residual_is_written_and_on_by_default(host):
    for settings, on in (({"skip_residual": False}, False), (ON, True)):
        p = host.text_job(settings)
        host.run(p)
        assert p.extra_generation_params["APT skip residual"] is on


def test_without_the_skip_residual_the_picture_is_another(host):
    one, other = (host.run(host.text_job({"skip_residual": on}, denoising_strength=0.9))[0] for on in (True, False))
    assert np.abs(pixels(one) - pixels(other)).mean() > 1
