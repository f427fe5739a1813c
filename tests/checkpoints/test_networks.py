"""Checkpoints as denoisers: the same numbers as diffusers' own pipelines and schedulers."""

import numpy as np
import pytest
import torch

from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.networks import flow_sigmas, guided
from apt_ext.core.types import Size
from apt_ext.demo.samplers import k_sampling, make_sigmas
from tests.checkpoints.conftest import UNETS

STEPS = 4  # 999 / 3 is whole: the levels of k-diffusion and of diffusers are the same entries of the table


def denoised(model, x, sigmas, job):
    made = model.conditioned(job)(None)
    with torch.no_grad():
        return k_sampling().sample_euler(made.denoiser, x, sigmas, extra_args=made.extra, disable=True)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", UNETS)
def test_a_picture_from_noise_is_the_one_of_the_pipeline(opened, some, kind, guidance):
    """The whole way: prompt, negative prompt, SDXL's sizes, guidance, the UNet, the noise levels; Euler by k-diffusion and by diffusers."""
    from diffusers import EulerDiscreteScheduler

    model = opened(kind)
    pipe, own = model.pipe, model.pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(own.config, timestep_spacing="linspace", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    noise = some(1, 4, 8, 8)
    try:
        theirs = pipe(
            prompt="a red cat",
            negative_prompt="blurry",
            guidance_scale=guidance,
            num_inference_steps=STEPS,
            latents=noise,
            height=64,
            width=64,
            output_type="latent",
            return_dict=False,
        )[0]
    finally:
        pipe.scheduler = own
    sigmas = make_sigmas("normal", STEPS, model.sigmas)
    ours = denoised(model, noise * sigmas[0], sigmas, PromptJob(prompt="a red cat", negative="blurry", guidance=guidance))
    assert float(theirs.std()) > 0.1
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_flow_from_the_middle_is_the_one_of_the_pipeline(opened, some, kind):
    """A straight step of the flow is a straight step of k-diffusion's in its own coordinates, whatever the shift of its times."""
    model = opened(kind)
    pipe, start = model.pipe, some(1, 16, 8, 8)
    pipe.set_progress_bar_config(disable=True)
    latents = start if kind == "sd3" else pipe._pack_latents(start, 1, 16, 8, 8)
    common = {"prompt": "a red cat", "guidance_scale": 3.0, "num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent", "return_dict": False}
    theirs = pipe(**common, **({"negative_prompt": "fog"} if kind == "sd3" else {}), latents=latents, sigmas=[0.7, 0.4, 0.2])[0]
    if kind == "flux":
        theirs = pipe._unpack_latents(theirs, 64, 64, pipe.vae_scale_factor)
    times = pipe.scheduler.sigmas.float()
    assert 0.2 < float(times[0]) < 0.95
    ours = denoised(model, start / (1 - times[0]), times / (1 - times), PromptJob(prompt="a red cat", negative="fog" if kind == "sd3" else "", guidance=3.0))
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))


def test_the_times_of_a_flow_are_its_scheduler_s(opened):
    from diffusers import FlowMatchEulerDiscreteScheduler

    for kind, times in (("sd3", FlowMatchEulerDiscreteScheduler(shift=3.0)), ("flux", None)):
        model = opened(kind)
        table = model.sigmas / (1 + model.sigmas)
        if times is not None:
            assert np.allclose(table, times.sigmas.flip(0)[: len(table)], atol=1e-5)
        else:
            from diffusers.pipelines.flux.pipeline_flux import calculate_shift

            mu = calculate_shift(16, 256, 4096, 0.5, 1.15)  # of a window of 4 x 4 squares
            model.pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 0.001, 1000), mu=mu)
            assert np.allclose(table, model.pipe.scheduler.sigmas[:-1].flip(0)[: len(table)], atol=1e-5)
    assert torch.allclose(flow_sigmas(1.0)[499], torch.tensor(1.0))


@pytest.mark.parametrize("kind", [*UNETS, "sd3", "flux"])
def test_views_of_any_size_come_back_in_their_own(opened, some, kind):
    model = opened(kind)
    for rows, columns in ((7, 9), (5, 8)):
        x = some(2, model.channels, rows, columns)
        made = model.conditioned(PromptJob(prompt="cat"))(None)
        extra = {name: {key: value.repeat_interleave(2, 0) for key, value in rows.items()} for name, rows in made.extra.items()}
        with torch.no_grad():
            assert made.denoiser(x, torch.ones(2), **extra).shape == x.shape


def test_a_picture_without_places_in_the_network_is_refused_before_it_is_begun(opened):
    from apt_ext.demo.wanted import Source

    z = torch.zeros(1, 16, 8, 32)
    with pytest.raises(ValueError, match=r"256 pixels along a side, and knows places for 192; crop"):
        opened("sd3").conditioned(PromptJob(), Source(z, z, (256, 64), torch.zeros(1, 3, 64, 256)))


def test_guidance_is_left_out_below_its_level_and_at_one(opened, some):
    calls = []

    def denoiser(x, sigma, **words):
        calls.append(len(x))
        return x * words["context"].mean(dim=(1, 2), keepdim=True)[..., None]

    prompt, negative = {"context": torch.full((1, 2, 2), 3.0)}, {"context": torch.ones(1, 2, 2)}
    x = some(1, 4, 2, 2)
    both = guided(denoiser, 2.0, 0.5)
    assert torch.allclose(both(x, torch.ones(1), prompt=prompt, negative=negative), 5 * x)
    assert torch.allclose(both(x, torch.full((1,), 0.4), prompt=prompt, negative=negative), 3 * x)
    assert torch.allclose(guided(denoiser, 1.0, 0.0)(x, torch.ones(1), prompt=prompt, negative=negative), 3 * x)
    assert calls == [2, 1, 1]


def test_an_sdxl_window_is_told_its_own_corner_and_the_size_of_the_whole(opened, some):
    from apt_ext.core.conditioning import ViewBatch
    from apt_ext.core.dilated import dilated_grid
    from apt_ext.core.windows import Window
    from apt_ext.demo.wanted import Source

    model = opened("sdxl")
    z = some(1, 4, 12, 9)
    made = model.conditioned(PromptJob(prompt="cat", scale=2.0), Source(z, z, (72, 96), torch.zeros(1, 3, 96, 72)))(None)
    windows = (Window(0, 0, 8, 8), Window(4, 10, 8, 8), Window(-2, 3, 8, 8))
    cut = made.condition(made.extra, ViewBatch((24, 18), 1, windows))
    for name in ("prompt", "negative"):
        assert cut[name]["time_ids"].tolist() == [[192, 144, top, left, 192, 144] for top, left in ((0, 0), (32, 80), (0, 24))]
        assert len(cut[name]["context"]) == len(cut[name]["pooled"]) == 3
    whole = made.condition(made.extra, ViewBatch((24, 18), 1, (), dilated_grid((24, 18), (2, 2)), (0, 4)))
    assert whole["prompt"]["time_ids"].tolist() == [[192, 144, 0, 0, 192, 144]] * 4


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_latents_are_those_of_the_autoencoder(opened, some, kind):
    model = opened(kind)
    vae, picture = model.pipe.vae, some(1, 3, 8 * 14, 8 * 9).clamp(-1, 1)
    shift = vae.config.shift_factor or 0
    with torch.no_grad():
        z = (vae.encode(picture).latent_dist.mean - shift) * vae.config.scaling_factor
        back = vae.decode(z / vae.config.scaling_factor + shift).sample.clamp(-1, 1)
    assert torch.equal(model.encode(picture), z)
    assert torch.equal(model.decode(z), back)


def test_tiles_are_closer_to_the_whole_than_diffusers_own_and_leave_the_autoencoder_as_it_was(some, monkeypatch):
    """Attention sees its tile alone, which weights of chance make much of; everything else is as if it were done at once."""
    from apt_ext.checkpoints import latents
    from tests.checkpoints.tiny import vae

    torch.manual_seed(3)
    own = vae(mid_block_add_attention=False).eval()
    made, picture = latents.Autoencoder(own), some(1, 3, 8 * 60, 8 * 24).clamp(-1, 1)
    z = made.encode(picture, torch.device("cpu"))
    back = made.decode(z)
    monkeypatch.setattr(latents, "TILE", 32)
    own.enable_tiling()
    own.tile_latent_min_size, own.tile_sample_min_size = 32, 256
    theirs = made.decode(z)  # diffusers' own tiles, each normalised by itself
    own.disable_tiling()

    def away(a, b):
        return float((a - b).square().mean().sqrt() / b.std())

    assert away(made.decode(z), back) < away(theirs, back) / 2
    assert away(made.encode(picture, torch.device("cpu")), z) < 0.05
    assert not any("forward" in layer.__dict__ for layer in own.modules())


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_a_preset_begins_at_the_same_noise_on_every_model(opened, spacing):
    """Flow's own levels go from nothing to near infinity; by these spacings a quarter of the steps is the same noise as on Stable Diffusion."""
    levels = {kind: make_sigmas(spacing, 40, opened(kind).sigmas)[30] for kind in ("sd1", "sd2v", "sd3", "flux")}
    assert float(levels["sd1"]) == float(levels["sd2v"])
    for kind in ("sd3", "flux"):
        assert float(opened(kind).sigmas[-1]) > 500
        assert float(levels[kind]) == pytest.approx(float(levels["sd1"]), rel=0.01)
    assert float(make_sigmas("normal", 40, opened("sd3").sigmas)[0]) == float(opened("sd3").sigmas[-1])


def test_a_first_size_is_the_window_s(opened):
    assert opened("sd1").first_size == Size(8, 8)
    assert opened("flux").facts.window == Size(8, 8)
