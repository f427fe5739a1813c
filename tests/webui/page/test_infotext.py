"""What a job writes into the infotext: everything that made the picture, and nothing that did not."""

import copy
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.host.double.jobs import ON, far, refusal

pytestmark = pytest.mark.usefixtures("settings_page")


def entries(text):
    return text.count("APT ")


def test_another_job_that_shares_the_infotext_takes_nothing_from_it(host, monkeypatch):
    """As ADetailer does after every picture: a job of its own, with this one's infotext, scripts and pictures, and APT off."""
    script = host.adapter("script").APTScript
    after = script.postprocess_image

    def postprocess_image(self, p, pp, *args):
        after(self, p, pp, *args)
        if not isinstance(p, host.processing.StableDiffusionProcessingImg2Img):
            inner = host.picture_job(False, init_images=[pp.image], width=64, height=64, extra_generation_params=p.extra_generation_params)
            host.processing.process_images(inner)
            assert not [name for name in inner.extra_generation_params if name.startswith("APT")]

    monkeypatch.setattr(script, "postprocess_image", postprocess_image)
    p = host.text_job(ON, batch_size=2, n_iter=2)
    written = []
    show = script.postprocess
    monkeypatch.setattr(script, "postprocess", lambda self, q, processed, *args: written.append(processed.infotexts) or show(self, q, processed, *args))
    host.run(p)
    (texts,) = [one for one in written if len(one) == 4]
    assert len({entries(text) for text in texts}) == 1
    assert entries(texts[0]) > 20


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_another_job_inside_one_leaves_pictures_bar_and_infotext_as_they_were(host, job_of_kind, picture, monkeypatch, kind):
    """A script's own job in `postprocess_image`, with the same scripts, as ADetailer's."""
    script, inner = host.adapter("script").APTScript, []
    after = script.postprocess_image

    def ran(inside):
        bar, texts, depth = [], [], []

        def on_call():
            if not depth:
                bar.append((host.shared.state.job_no, host.shared.state.job_count))

        def postprocess_image(self, p, pp, *args):
            after(self, p, pp, *args)
            if depth or not inside:
                return
            depth.append(1)
            job = host.picture_job(*args, init_images=[pp.image], width=64, height=64, extra_generation_params=p.extra_generation_params)
            inner.append(host.processing.process_images(job))
            depth.pop()
            texts.append(dict(p.extra_generation_params))

        monkeypatch.setattr(script, "postprocess_image", postprocess_image)
        host.model.on_call = on_call
        p = job_of_kind(kind, n_iter=3, batch_size=2)
        made = host.run(p)
        return made, bar, {name: value for name, value in p.extra_generation_params.items() if name.startswith("APT")}

    pictures, bar, text = ran(False)
    with_inner = ran(True)
    assert len(inner) == 6
    assert [far(one, other) for one, other in zip(pictures, with_inner[0], strict=True)] == [0] * 6
    assert with_inner[1:] == (bar, text)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_bar_of_a_script_around_the_jobs_goes_on(host, job_of_kind, kind):
    """As the plot does: jobs one after the other, and one bar."""
    host.shared.state = state = host.shared.State()
    state.job_count, at = 100, []
    host.model.on_call = lambda: at.append(state.job_no / state.job_count)
    for given in ({}, {"enable_hr": False} if kind == "text" else {}, {}):
        host.processing.process_images(job_of_kind(kind, **given))
    assert at == sorted(at)
    assert state.job_no == (5 if kind == "text" else 3)


def test_a_copy_of_a_job_does_not_clear_the_first_one_s_entries(host):
    p = host.text_job(ON)
    host.run(p)
    other = copy.copy(p)
    other.scripts = host.script(False)
    host.run(other)
    assert "APT method" in p.extra_generation_params
    assert "APT method" not in other.extra_generation_params


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_where_another_extension_takes_the_sampler_over_nothing_is_claimed_and_it_is_said(host, job_of_kind, monkeypatch, kind):
    script = host.adapter("script").APTScript
    install = script.process_before_every_sampling
    taken = []

    def take_over(self, p, *args, **kwargs):
        install(self, p, *args, **kwargs)
        if p.is_hr_pass or kind == "picture":
            kept = type(p.sampler).sample_img2img
            p.sampler.sample_img2img = lambda *a, **k: taken.append(1) or kept(p.sampler, *a, **k)

    monkeypatch.setattr(script, "process_before_every_sampling", take_over)
    p = job_of_kind(kind, n_iter=2)
    host.run(p)
    assert len(taken) == 2
    assert not [name for name in p.extra_generation_params if name.startswith("APT")]
    assert list(p.comments) == [host.claims.TAKEN_OVER]


def test_a_stop_before_the_phases_claims_nothing(host):
    host.model.on_call = lambda: setattr(host.shared.state, "interrupted", True)
    p = host.text_job(ON)
    host.run(p)
    assert not [name for name in p.extra_generation_params if name.startswith("APT")]
    assert not p.comments


@pytest.mark.parametrize(("size", "said"), [((64, 64), True), ((48, 64), True), ((72, 64), False), ((128, 128), False)])
def test_a_picture_that_is_not_to_become_larger_is_said(host, picture, size, said):
    p = host.picture_job(ON, init_images=[picture], width=size[0], height=size[1])
    assert host.run(p)[0].size == size
    assert bool(p.comments) == said
    asked = {"img2img": True, "target": list(size), "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.4, "sampler": "euler"}
    assert (host.panel.plan(asked | {"scheduler": "Automatic", "settings": {}})["notes"] == [host.panel.SIZE_NOTE]) == said


@pytest.mark.parametrize(
    ("asked", "latent"),
    [
        ({"img2img": False, "upscaler": "Latent"}, True),
        ({"img2img": False, "upscaler": "Lanczos"}, False),
        ({"img2img": False, "upscaler": "None", "settings": {"upscaler": "latent"}}, True),
        ({"img2img": False, "upscaler": "Lanczos", "settings": {"upscaler": "latent"}}, False),
        ({"img2img": True, "settings": {"upscaler": "latent"}}, True),
        ({"img2img": True, "settings": {"upscaler": "Nearest"}}, False),
        ({"img2img": True, "resize_mode": 3}, True),
    ],
)
def test_the_panel_says_what_a_latent_upscaler_costs(host, asked, latent):
    whole = {"first": [64, 64], "target": [128, 128], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
    notes = host.panel.plan(whole | {"scheduler": "Automatic", "settings": {}} | asked)["notes"]
    assert (host.panel.LATENT_NOTE in notes) == latent
    assert all("\n" not in note for note in notes)


WHOLE = {"img2img": True, "target": [128, 128], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.4, "sampler": "euler"}


@pytest.mark.parametrize(("name", "later"), [(None, False), ("base", False), ("", False), ("unheard of", False), ("other", True)])
def test_the_panel_says_where_another_checkpoint_is_chosen_than_the_loaded_one(host, monkeypatch, name, later):
    monkeypatch.setitem(host.sd_models.known, type(host.model)("other").sd_checkpoint_info, None)
    made = host.panel.plan(WHOLE | {"scheduler": "Automatic", "checkpoint": name})
    assert made["later"] == later
    assert (host.panel.LATER_NOTE in made["notes"]) == later
    with pytest.raises(ValueError, match="sampler 'none such'") as refused:
        host.panel.plan(WHOLE | {"scheduler": "Automatic", "checkpoint": name, "sampler": "none such"})
    assert str(refused.value).endswith(host.panel.LATER_NOTE) == later


@pytest.mark.parametrize(("width", "strength", "said"), [(0.25, 0.7, True), (0.25, 0.3, False), (4.0, 0.7, False), (0.0, 0.7, False)])
def test_the_panel_says_where_the_colour_fix_would_bring_old_shapes_back(host, width, strength, said):
    asked = {
        "img2img": True,
        "target": [128, 128],
        "given": [64, 64],
        "resize_mode": 0,
        "steps": 8,
        "hires_steps": 0,
        "denoising": strength,
        "sampler": "euler",
    }
    notes = host.panel.plan(asked | {"scheduler": "Automatic", "settings": {"colour_fix": width}})["notes"]
    assert notes == [host.panel.COLOUR_NOTE] * said


@pytest.mark.parametrize("wrong", [{"target": [4_000_000, 64]}, {"given": [0, 64]}, {"steps": 10**9}, {"target": [float("nan"), 64]}, {"steps": float("inf")}])
def test_the_panel_plans_nothing_boundless(host, wrong):
    asked = {"img2img": True, "target": [128, 128], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
    with pytest.raises(ValueError, match=r"cannot be planned; use (a whole number from )?[01] to"):
        host.panel.plan(asked | {"scheduler": "Automatic", "settings": {}} | wrong)


def test_the_panel_refuses_an_unknown_upscaler(host):
    asked = {"img2img": True, "target": [128, 128], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
    with pytest.raises(ValueError, match="upscaler 'Magic' does not exist"):
        host.panel.plan(asked | {"scheduler": "Automatic", "settings": {"upscaler": "Magic"}})


@pytest.mark.parametrize("package", ["modules_forge"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_host_with_another_backend_refuses_in_a_sentence(host, job_of_kind, tmp_path, monkeypatch, kind, package):
    monkeypatch.setattr(host.adapter("detect"), "modules", SimpleNamespace(__path__=[str(tmp_path / "modules")]))
    (tmp_path / package).mkdir()
    p = job_of_kind(kind, is_api=True)
    with pytest.raises(Exception, match=rf"a backend of its own \({package}\), which APT does not reach yet; turn APT off") as caught:
        host.run(p)
    assert refusal(caught)[0] == 422
    assert not host.model.calls
    assert not [name for name in p.extra_generation_params if name.startswith("APT")]
    off = job_of_kind(kind, False)
    plain = job_of_kind(kind)
    plain.scripts = None
    assert far(host.run(off)[0], host.run(plain)[0]) == 0


def test_the_api_s_dropdown_entry_and_a_file_of_odd_size_leave_the_others_alone(host, picture):
    """As the batch tab does: one processing object, file after file."""
    p = host.picture_job(ON, init_images=[picture])
    made = []
    for size in ((64, 64), (67, 45), (64, 64)):
        p.init_images, p.width, p.height = [picture.resize(size)], 12 * size[0], 12 * size[1]
        p.sampler = p.init_latent = None
        made.append(host.run(p)[0])
    assert [one.size for one in made] == [(768, 768), (800, 536), (768, 768)]
    assert isinstance(made[0], Image.Image)
    assert far(made[0], made[2]) == 0
