"""Whole jobs through the double of the host: what comes out, and that nothing of them stays."""

import copy
import gc
import re

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.core.clock import CALLS_PER_STEP
from tests.host.double.jobs import ON, far, left_on_p, nothing_left, pixels, refusal

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "ddim", "plms"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_job_reaches_the_target_size_and_leaves_nothing(host, samplers, job_of_kind, kind, sampler):
    p = job_of_kind(kind, sampler_name=sampler, steps=5)
    (made,) = host.run(p)
    assert made.size == (128, 128)
    assert pixels(made).std() > 5
    assert p.extra_generation_params["APT method"] == "demofusion"
    assert not p.scripts.reports
    assert not left_on_p(p)
    nothing_left(host, samplers)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_job_makes_another_picture_than_the_host_alone(host, job_of_kind, kind):
    p = job_of_kind(kind)
    p.scripts = None
    ordinary = host.run(p)[0]
    assert far(host.run(job_of_kind(kind))[0], ordinary) > 10
    p = job_of_kind(kind)
    p.scripts = None
    assert far(host.run(p)[0], ordinary) == 0


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"hr_scale": 3.0}, (192, 192)),
        ({"hr_scale": 2.5, "width": 96}, (240, 160)),
        ({"hr_resize_x": 128, "hr_resize_y": 96}, (128, 96)),
        ({"hr_resize_x": 80, "hr_resize_y": 128}, (80, 128)),
    ],
)
def test_hires_sizes(host, given, size):
    assert host.run(host.text_job(ON, **given))[0].size == size


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_img2img_to_another_aspect(host, job_of_kind, mode):
    assert host.run(job_of_kind("picture", resize_mode=mode, width=128, height=192))[0].size == (128, 192)


@pytest.mark.parametrize("method", ["multidiffusion", "accdiffusion"])
def test_other_methods_in_larger_and_smaller_window_batches(host, method):
    one, many = (host.run(host.text_job({"method": method, "window_batch": n}))[0] for n in (1, 16))
    assert far(one, many) <= 1


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_prompts_together_and_apart_make_the_same_picture(host, sampler):
    together = host.run(host.text_job(ON, sampler_name=sampler))[0]
    calls = len(host.model.calls)
    host.shared.opts.batch_cond_uncond = False
    apart = host.run(host.text_job(ON, sampler_name=sampler))[0]
    assert len(host.model.calls) > 2 * calls
    assert far(together, apart) <= 1


@pytest.mark.parametrize(("kind", "sampler"), [("text", "euler_ancestral"), ("text", "dpmpp_2m_sde"), ("picture", "euler"), ("picture", "ddim")])
def test_a_batch_is_what_its_pictures_are_alone(host, job_of_kind, kind, sampler):
    together = host.run(job_of_kind(kind, sampler_name=sampler, batch_size=2, steps=5))
    alone = [host.run(job_of_kind(kind, sampler_name=sampler, seed=seed, steps=5))[0] for seed in (11, 12)]
    assert far(*alone) > 5
    assert [far(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True, True]


def test_several_batches_are_what_their_pictures_are_alone(host, samplers):
    together = host.run(host.text_job(ON, n_iter=2))
    assert far(together[1], host.run(host.text_job(ON, seed=12))[0]) <= 1
    nothing_left(host, samplers)


def test_several_pictures_of_img2img_each_start_from_their_own(host, picture):
    turned = picture.rotate(90)
    together = host.run(host.picture_job(ON, init_images=[picture, turned], batch_size=2))
    alone = [host.run(host.picture_job(ON, init_images=[one], seed=seed))[0] for one, seed in ((picture, 11), (turned, 12))]
    assert [far(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True, True]


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_a_mask_keeps_the_rest_of_the_picture(host, picture, sampler):
    large = picture.resize((128, 128))
    mask = Image.new("L", large.size, 0)
    mask.paste(255, (32, 32, 96, 96))
    p = host.picture_job(ON | {"colour_fix": 0.0}, init_images=[large], image_mask=mask, sampler_name=sampler, steps=8)
    made = host.run(p)[0]
    kept = host.vae.pictures_of(host.model, p.init_latent)[0]
    outside = np.asarray(mask) == 0
    assert np.abs(pixels(made) - pixels(kept))[outside].max() <= 1
    assert np.abs(pixels(made) - pixels(kept))[~outside].max() > 5
    assert p.mask.shape == (4, 16, 16)


def test_outside_a_mask_every_phase_starts_from_the_given_picture(host, picture, monkeypatch):
    starts = []
    kind = host.sd_samplers_kdiffusion.KDiffusionSampler
    sample = kind.sample_img2img
    monkeypatch.setattr(kind, "sample_img2img", lambda self, p, x, *rest, **more: starts.append(x.clone()) or sample(self, p, x, *rest, **more))
    mask = Image.new("L", (192, 192), 0)
    mask.paste(255, (96, 0, 192, 192))
    p = host.picture_job(ON | {"phases": "progressive"}, init_images=[picture], image_mask=mask, width=192, height=192)
    host.run(p)
    assert [tuple(x.shape[-2:]) for x in starts] == [(16, 16), (24, 24)]
    for x in starts:
        given = torch.nn.functional.interpolate(p.init_latent, size=x.shape[-2:], mode="bicubic", antialias=True)
        half = x.shape[-1] // 2
        torch.testing.assert_close(x[..., :half], given[..., :half])
        assert not torch.allclose(x[..., half:], given[..., half:], atol=1e-2)


def test_every_phase_draws_noise_of_its_own_size(host, monkeypatch):
    drawn, following = [], host.rng.ImageRNG.next
    monkeypatch.setattr(host.rng.ImageRNG, "next", lambda self: drawn.append(self.shape[-2:]) or following(self))
    assert host.run(host.text_job(ON | {"phases": "progressive"}, hr_scale=3.0, sampler_name="euler_ancestral", steps=4))[0].size == (192, 192)
    phases = [size for size in drawn if size != (8, 8)][1:]
    assert phases == [(16, 16)] * 4 + [(24, 24)] * 4, "the start, and every step but the last"


def test_hires_starts_from_the_first_pass_and_not_from_its_enlarged_picture(host, monkeypatch):
    seen = []
    run_phases = host.sampling.run_phases
    monkeypatch.setattr(host.sampling, "run_phases", lambda run, z, *rest: seen.append(z) or run_phases(run, z, *rest))
    first = {}
    sample = host.sd_samplers_kdiffusion.KDiffusionSampler.sample
    monkeypatch.setattr(host.sd_samplers_kdiffusion.KDiffusionSampler, "sample", lambda *a, **k: first.setdefault("z", sample(*a, **k)))
    p = host.text_job(ON, hr_upscaler="Latent")
    host.run(p)
    assert torch.equal(seen[0], first["z"])
    assert p.latent_scale_mode == host.shared.latent_upscale_modes["Latent"]


def interrupting(host, after, how="interrupted"):
    def on_call():
        if len(host.model.calls) == after:
            setattr(host.shared.state, how, True)

    host.model.on_call = on_call


def calls_of(host, p):
    host.run(p)
    return len(host.model.calls)


@pytest.mark.parametrize(
    ("kind", "sampler", "share", "how"),
    [
        ("text", "euler", 0.15, "interrupted"),
        ("text", "euler", 0.95, "skipped"),
        ("text", "ddim", 0.95, "interrupted"),
        ("picture", "euler", 0.95, "interrupted"),
        ("picture", "ddim", 0.15, "skipped"),
    ],
)
def test_a_stop_gives_the_target_size_and_leaves_nothing(host, samplers, job_of_kind, kind, sampler, share, how):
    scaled = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    given = scaled | {"sampler_name": sampler, "steps": 8}
    whole = calls_of(host, job_of_kind(kind, {"window_batch": 2}, **given))
    host.model.calls.clear()
    interrupting(host, int(share * whole), how)
    p = job_of_kind(kind, {"window_batch": 2}, **given)
    (made,) = host.run(p)
    assert made.size == (192, 192)
    assert pixels(made).std() > 2
    assert len(host.model.calls) <= int(share * whole) + 1, "it goes on after the stop"
    assert not p.scripts.reports
    assert not left_on_p(p)
    assert p.rng.shape[-2:] == (24, 24)
    nothing_left(host, samplers)


@pytest.mark.parametrize(("kind", "sampler"), [("text", "euler"), ("text", "ddim"), ("picture", "dpmpp_2m")])
def test_an_error_inside_the_model_leaves_nothing(host, samplers, job_of_kind, kind, sampler):
    given = {"sampler_name": sampler, "steps": 6}
    whole = calls_of(host, job_of_kind(kind, **given))
    host.model.calls.clear()

    def on_call():
        if len(host.model.calls) == whole - 1:
            raise RuntimeError("broken")

    host.model.on_call = on_call
    p = job_of_kind(kind, **given | ({"hr_upscaler": "Latent"} if kind == "text" else {}))
    with pytest.raises(RuntimeError, match="broken"):
        host.run(p)
    nothing_left(host, samplers)
    assert p.rng.shape[-2:] == (16, 16)
    assert host.shared.state.textinfo is None
    if kind == "text":
        assert p.latent_scale_mode == host.shared.latent_upscale_modes["Latent"]
    host.job.detach(p)
    assert not left_on_p(p)
    host.model.on_call = lambda: None
    assert far(host.run(job_of_kind(kind, **given))[0], host.run(job_of_kind(kind, **given))[0]) == 0


def test_too_little_memory_makes_the_same_picture_in_smaller_batches(host):
    expected = host.run(host.text_job({"window_batch": 8}))[0]
    assert max(call[0] for call in host.model.calls) > 4

    def on_call():
        if host.model.calls[-1][0] > 4:
            raise RuntimeError("CUDA out of memory")

    host.model.on_call = on_call
    p = host.text_job({"window_batch": 8})
    assert far(host.run(p)[0], expected) <= 1
    assert [re.findall(r"from (\d+) to (\d+)", text) for text in p.comments] == [[("8", "4")], [("4", "2")]]
    assert host.devices.collections


def test_one_window_that_does_not_fit_is_an_error_in_a_sentence(host, samplers):
    def on_call():
        if host.shared.state.textinfo:
            raise RuntimeError("CUDA out of memory")

    host.model.on_call = on_call
    with pytest.raises(RuntimeError, match="one window alone does not fit") as caught:
        host.run(host.text_job({"window_batch": 2}))
    assert "\n" not in str(caught.value)
    nothing_left(host, samplers)


BAD = [
    ("text", {"gama": 1}, {}, "'gama' does not exist"),
    ("text", {"preset": "Best"}, {}, "preset 'Best'"),
    ("text", {"phases": "7"}, {}, "phase ratio 7"),
    ("text", ON, {"sampler_name": "dpm_fast"}, "'dpm_fast' chooses its own noise levels, where the skip residual cannot follow"),
    ("text", ON, {"hr_sampler_name": "Use same sampler"}, "sampler 'Use same sampler' cannot be used"),
    ("text", ON, {"hr_scale": 0.5}, "is smaller than"),
    ("text", ON, {"denoising_strength": 0.0}, "leaves no step to run"),
    ("picture", ON, {"sampler_name": "dpm_fast"}, "'dpm_fast' chooses its own noise levels"),
    ("picture", ON, {"sampler_name": "ddim", "denoising_strength": 0.2}, "gets no step to run"),
    ("picture", {"overlap": 2}, {}, r"Window overlap \(overlap\) 2 is out of range"),
]


@pytest.mark.parametrize("is_api", [True, False])
@pytest.mark.parametrize(("kind", "settings", "given", "words"), BAD)
def test_what_cannot_be_done_is_refused_before_any_sampling(host, job_of_kind, kind, settings, given, words, is_api):
    p = job_of_kind(kind, settings, is_api=is_api, **given)
    with pytest.raises(Exception, match=words) as caught:
        host.run(p)
    if is_api:
        status, sentence = refusal(caught)
        assert status == 422
        assert sentence.startswith("APT: ")
    else:
        assert type(caught.value) is host.adapter("errors").APTError
        sentence = str(caught.value)
    assert "\n" not in sentence
    assert not host.model.calls


def test_without_hires_fix_the_page_gets_its_picture_and_a_remark(host):
    p = host.text_job(ON, enable_hr=False)
    assert host.run(p)[0].size == (64, 64)
    assert list(p.comments) == [host.job.HIRES_OFF]
    assert "APT method" not in p.extra_generation_params
    assert not left_on_p(p)


def test_without_hires_fix_the_api_is_refused(host):
    with pytest.raises(Exception, match="set enable_hr to true") as caught:
        host.run(host.text_job(ON, enable_hr=False, is_api=True))
    assert refusal(caught)[0] == 422


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("args", [(), (False,), (False, "Fast"), ({"enabled": False, "gama": 1},)])
def test_switched_off_no_attribute_is_touched(host, samplers, job_of_kind, kind, args):
    plain = job_of_kind(kind)
    plain.scripts = None
    seen = []
    host.model.on_call = lambda: seen.append((set(plain.__dict__), [set(one.__dict__) for one in samplers]))
    expected = host.run(plain)
    before, seen, made = seen, [], len(samplers)
    assert before
    p = job_of_kind(kind)
    p.scripts = host.script(*args)
    host.model.on_call = lambda: seen.append((set(p.__dict__), [set(one.__dict__) for one in samplers[made:]]))
    assert far(host.run(p)[0], expected[0]) == 0
    assert seen == before
    assert p.extra_generation_params == plain.extra_generation_params


def test_attaching_twice_does_not_wrap_twice(host):
    p = host.text_job()
    bound = p.init
    for _ in range(2):
        host.job.attach(p, host.request.Request())
    assert p.init.apt_original == bound
    assert left_on_p(p) == {"job", "init", "sample_hr_pass"}
    host.job.detach(p)
    assert not left_on_p(p)
    host.job.detach(p)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_when_others_send_a_job_to_another_machine_nothing_of_ours_stands_on_it(host, job_of_kind, kind):
    """As stable-diffusion-webui-distributed does in `before_process`: all that stands on the object goes into a JSON request."""
    p = job_of_kind(kind)
    before = dict(p.__dict__)
    p.scripts.before_process(p)
    assert p.__dict__ == before
    assert not left_on_p(copy.copy(p))


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_where_another_extension_goes_through_a_job_several_times_each_has_apt(host, job_of_kind, kind):
    """As ControlNet's batches do: the host's own beginning is called once."""
    p = job_of_kind(kind)
    first = host.run(p)[0]
    p.scripts.before_process = lambda p: None
    second = host.run(p)[0]
    assert far(second, first) == 0
    assert not left_on_p(p)


def test_what_is_kept_of_an_object_goes_with_it(host):
    kept = host.adapter("state").Beside()
    one, other = host.text_job(), host.text_job()
    kept.put(one, "job")
    kept.put(one, "another job")
    assert (kept.get(one), kept.get(copy.copy(one)), kept.pop(other)) == ("another job", None, None)
    del one
    gc.collect()
    assert not kept._kept
    kept.put(other, "job")
    assert (kept.pop(other), kept.pop(other)) == ("job", None)


def test_what_a_failed_job_left_on_its_object_does_not_run_when_switched_off(host):
    p = host.text_job(False)
    host.job.attach(p, host.request.Request())
    assert far(host.run(p)[0], host.run(host.text_job(False))[0]) == 0
    assert not left_on_p(p)


def test_the_same_object_may_run_again_with_and_without(host):
    p = host.text_job(ON)
    first = host.run(p)[0]
    assert far(host.run(p)[0], first) == 0
    p.scripts = host.script(False)
    plain = host.text_job(False)
    assert far(host.run(p)[0], host.run(plain)[0]) == 0


def test_another_extension_s_own_init_is_kept(host):
    p = host.text_job(ON)
    called = []
    theirs = p.init

    def init(*args):
        called.append(args)
        theirs(*args)

    p.init = init
    assert host.run(p)[0].size == (128, 128)
    assert p.__dict__["init"] is init
    assert len(called) == 1


def test_img2img_latents_are_decoded_in_tiles_where_asked(host, monkeypatch, picture):
    decoded = []
    decode = host.vae.decode
    monkeypatch.setattr(host.vae, "decode", lambda model, z: decoded.append(z.shape) or decode(model, z))
    for tiled, count in ((True, 1), (False, 0)):
        decoded.clear()
        host.run(host.picture_job({"tiled_vae": tiled}, init_images=[picture]))
        assert len(decoded) == count
    decoded.clear()
    host.run(host.text_job(ON, enable_hr=False))
    assert decoded == []


@pytest.mark.parametrize("sampler", CALLS_PER_STEP)
def test_every_sampler_carries_a_job(host, samplers, sampler):
    (made,) = host.run(host.text_job(ON, sampler_name=sampler, hr_scale=1.5))
    assert made.size == (96, 96)
    nothing_left(host, samplers)
