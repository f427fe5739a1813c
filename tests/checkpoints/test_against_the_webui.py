"""The same UNet in the WebUI's adapter and here: the same latents from the same start, noise and words."""

import pytest
import torch

from apt_ext.checkpoints.networks import guided
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import make_plan
from apt_ext.core.types import size_of
from apt_ext.core.upscale import sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options

STEPS, STRENGTH, GUIDANCE, SEED = 8, 0.5, 3.0, 11


def recorded(host, monkeypatch):
    """What the adapter's job begins with and makes, as latents, once it has run."""
    found = {}
    run = host.adapter("phases").run_phases
    monkeypatch.setattr(host.adapter("sampling"), "run_phases", lambda own, z, *rest: found.setdefault("out", run(own, found.setdefault("z", z), *rest)))
    return found


@pytest.mark.parametrize("method", ["multidiffusion", "demofusion", "accdiffusion"])
def test_the_engine_here_is_the_engine_there(host, settings_page, opened, picture, monkeypatch, method):
    model = opened("sd1")
    stage = type(host.model.cond_stage_model)(32)
    host.model.cond_stage_model = stage

    def apply_model(x, t, cond):
        return model.network(x, t, encoder_hidden_states=cond["c_crossattn"][0], return_dict=False)[0]

    monkeypatch.setattr(host.model, "apply_model", apply_model)
    options = {"method": method, "upscaler": "latent", "colour_fix": 0.0, "word_threshold": 0.0, "window_batch": 4}
    given = {"init_images": [picture], "steps": STEPS, "denoising_strength": STRENGTH, "cfg_scale": GUIDANCE, "seed": SEED, "sampler_name": "dpmpp_2m"}
    there = recorded(host, monkeypatch)
    p = host.picture_job({"enabled": True, **options}, width=144, height=128, **given)
    host.run(p)

    prompt, negative = stage.encode([p.prompt]), torch.full((1, 77, 32), -0.5)
    z = there["z"]
    facts = model.facts._replace(multiple=8)  # what the adapter takes an SD 1.x's sides to be multiples of
    levels = shortcut_sigmas(make_sigmas("karras", STEPS, model.sigmas), (int(STRENGTH * STEPS) + 1) / STEPS)
    plan = make_plan(size_of(z), (16, 18), Options(**options), facts, levels, [1] * (len(levels) - 1), 0)
    sample = sample_with(
        ViewCalls(guided(model._denoiser, GUIDANCE, 0.0), 4),
        lambda phase: make_sampler("dpmpp_2m", [SEED]),
        lambda phase, shape: torch.randn(shape, generator=torch.Generator().manual_seed(SEED)),
        model_calls=plan.calls,
        extra={"prompt": {"context": prompt}, "negative": {"context": negative}},
    )
    with torch.no_grad():
        here = upscale(z, z, plan, sample)
    assert here.shape == there["out"].shape == (1, 4, 16, 18)
    assert float((here - z.mean()).std()) > 0.1
    assert float((here - there["out"]).abs().max()) < 1e-4 * float(here.abs().max())
