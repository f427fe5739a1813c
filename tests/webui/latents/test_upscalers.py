"""What a job's pictures are enlarged by, and from which pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.double.jobs import ON, far, pixels, refusal

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.fixture
def asked(host, monkeypatch):
    """Every picture that the host was asked to resize: (size before, size after, upscaler)."""
    calls, resize = [], host.images.resize_image

    def resize_image(mode, im, width, height, upscaler_name=None):
        calls.append((im.size, (width, height), upscaler_name))
        return resize(mode, im, width, height, upscaler_name)

    monkeypatch.setattr(host.images, "resize_image", resize_image)
    return calls


@pytest.fixture
def starts(host, monkeypatch):
    """The latents that every phase began with, before its noise."""
    seen, upscale = [], host.phases.upscale

    def watched(*args, upsample, **more):
        return upscale(*args, upsample=lambda z, size: seen.append(upsample(z, size)) or seen[-1], **more)

    monkeypatch.setattr(host.phases, "upscale", watched)
    return seen


def encoded(host, picture, size, method=Image.Resampling.LANCZOS):
    return host.vae.encode(host.model, [picture.convert("RGB").resize(size, method)])


def test_the_hosts_upscaler_enlarges_before_every_hires_phase(host, asked):
    p = host.text_job({"phases": "2,3"}, hr_upscaler="Nearest", hr_scale=3.0)
    assert host.run(p)[0].size == (192, 192)
    assert asked == [((64, 64), (128, 128), "Nearest"), ((128, 128), (192, 192), "Nearest")]
    assert "APT upscaler" not in p.extra_generation_params


def test_a_latent_upscaler_is_obeyed(host, asked, starts):
    host.run(host.text_job({"phases": "2,3", "colour_fix": 0.0}, hr_upscaler="Latent", hr_scale=3.0))
    assert asked == []
    assert len(starts) == 2


def test_where_the_hosts_field_says_none_apts_own_upscaler_decides(host, starts):
    first = {}
    kind = host.sd_samplers_kdiffusion.KDiffusionSampler
    sample = kind.sample
    for own in ("bicubic", "lanczos", "Nearest"):
        starts.clear()
        kind.sample = lambda *a, **k: first.setdefault("z", sample(*a, **k))
        try:
            p = host.text_job({"upscaler": own}, hr_upscaler="None")
            host.run(p)
        finally:
            kind.sample = sample
        method = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}[own]
        picture = host.vae.pictures_of(host.model, first.pop("z"))[0]
        torch.testing.assert_close(starts[0], encoded(host, picture, (128, 128), method))
        assert p.extra_generation_params["APT upscaler"] == own


def test_without_a_choice_of_the_apis_caller_apts_own_upscaler_decides_and_is_named(host):
    p = host.text_job({"preset": "Published", "phases": "direct"})
    seen = []
    host.model.on_call = lambda: seen.append(p.hr_upscaler)
    host.run(p)
    assert set(seen) == {"Latent (bicubic)"}
    assert p.hr_upscaler is None


@pytest.mark.parametrize("own", ["lanczos", "bicubic", "Nearest"])
@pytest.mark.parametrize("setting", [None, "Nearest"])
def test_img2img_starts_from_the_given_pixels_by_apts_own_upscaler(host, picture, starts, own, setting):
    host.shared.opts.upscaler_for_img2img = setting
    host.run(host.picture_job({"upscaler": own, "phases": "progressive"}, init_images=[picture], width=192, height=192))
    method = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}[own]
    assert [z.shape[-1] for z in starts] == [16, 24]
    torch.testing.assert_close(starts[0], encoded(host, picture, (128, 128), method))
    starts.clear()
    host.run(host.picture_job({"upscaler": own, "phases": "direct"}, init_images=[picture], width=192, height=192))
    torch.testing.assert_close(starts[0], encoded(host, picture, (192, 192), method))


@pytest.mark.parametrize("given", [{"upscaler": "latent"}, {"resize_mode": 3}])
def test_img2img_from_enlarged_latents_where_the_user_says_so(host, picture, starts, given):
    mode = given.pop("resize_mode", 0)
    p = host.picture_job({"phases": "direct"} | given, init_images=[picture], width=192, height=192, resize_mode=mode)
    host.run(p)
    small = encoded(host, picture, (64, 64))
    torch.testing.assert_close(starts[0], torch.nn.functional.interpolate(small, size=(24, 24), mode="bicubic"))
    assert ("APT upscaler" in p.extra_generation_params) == (mode != 3)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("own", ["lanczos", "bicubic"])
def test_cutting_and_filling_up_are_the_hosts(host, starts, mode, own):
    wide = Image.merge("RGB", [Image.linear_gradient("L").resize((96, 64))] * 3)
    host.run(host.picture_job({"upscaler": own, "phases": "direct"}, init_images=[wide], width=128, height=192, resize_mode=mode))
    expected = host.vae.encode(host.model, [host.images.resize_image(mode, wide, 128, 192, "None")])
    assert (starts[0] - expected).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_unknown_upscalers_are_refused_before_any_sampling(host, job_of_kind, kind):
    given = {"hr_upscaler": "None"} if kind == "text" else {}
    with pytest.raises(Exception, match="upscaler 'Magic' does not exist; use one of lanczos, bicubic, latent, Nearest") as caught:
        host.run(job_of_kind(kind, {"upscaler": "Magic"}, is_api=True, **given))
    assert refusal(caught)[0] == 422
    assert not host.model.calls


def test_names_are_found_in_any_case_and_written_as_the_host_writes_them(host):
    names = {"LANCZOS": "Lanczos", "latent": "Latent (bicubic)", "Latent": "Latent (bicubic)", "nearest": "Nearest", "bicubic": "None", "None": "Lanczos"}
    assert {name: host.upscalers.host_name(name) for name in names} == names


def test_a_cut_target_takes_the_cut_pixels(host, starts):
    p = host.text_job(ON, hr_resize_x=128, hr_resize_y=96, hr_upscaler="Lanczos")
    assert host.run(p)[0].size == (128, 96)
    assert starts[0].shape[-2:] == (12, 16)


@pytest.mark.parametrize("is_text", [True, False])
def test_every_picture_of_a_batch_is_enlarged_from_its_own_pixels(host, picture, starts, is_text):
    if is_text:
        host.run(host.text_job(ON, batch_size=2))
    else:
        host.run(host.picture_job(ON, init_images=[picture, picture.rotate(90)], batch_size=2))
        torch.testing.assert_close(starts[0][1:], encoded(host, picture.rotate(90), (128, 128)))
    assert starts[0].shape[0] == 2
    assert not torch.allclose(starts[0][0], starts[0][1], atol=1e-2)


def test_odd_sizes_are_what_the_host_makes_of_them(host, picture):
    """The host does not round the sizes of "Resize by"; its encoder drops what does not fill a latent pixel."""
    p = host.picture_job(ON, init_images=[picture.resize((70, 50))], width=804, height=574)
    assert host.run(p)[0].size == (800, 568)


def test_pixels_keep_more_of_the_picture_than_latents(host, picture):
    def distance(own):
        settings = {"upscaler": own, "colour_fix": 0.0, "phases": "direct", "matching": 1.0}
        made = host.run(host.picture_job(settings, init_images=[picture], width=192, height=192, denoising_strength=0.3))[0]
        return np.abs(pixels(made) - pixels(picture.resize((192, 192), Image.Resampling.LANCZOS))).mean()

    assert distance("lanczos") < distance("latent")


def test_the_same_upscaler_by_another_name_makes_the_same_picture(host, picture):
    one, other = (host.run(host.picture_job({"upscaler": name}, init_images=[picture]))[0] for name in ("lanczos", "Lanczos"))
    assert far(one, other) == 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_job_at_the_own_size_begins_with_the_base_itself(host, job_of_kind, starts, monkeypatch, kind):
    seen = []
    run_phases = host.sampling.run_phases
    monkeypatch.setattr(host.sampling, "run_phases", lambda run, z, *rest: seen.append(z) or run_phases(run, z, *rest))
    host.run(job_of_kind(kind, ON, **({"hr_scale": 1.0} if kind == "text" else {"width": 64, "height": 64})))
    assert [z.shape[-1] for z in starts] == [8]
    assert torch.equal(starts[0], seen[0])
