"""Jobs with checkpoints of rectified flow, on 1.10.1, on Forge and on Forge Neo."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.networks import flow_denoiser
from apt_ext.core.upscale import sample_with, upscale
from apt_ext.core.views import ViewCalls
from tests.host.contract_forge import NOISE_BY_SNR, SNR
from tests.host.double.flow import Chroma, Flux, Lumina2, Mugen, StableDiffusion3, StableDiffusionXL, ZImage
from tests.host.double.jobs import ON, far, nothing_left
from tests.host.forge import DYNAMIC, become_forge, neo_s_passes

pytestmark = pytest.mark.usefixtures("settings_page")
FORGE, NEO = (StableDiffusion3, Flux, Chroma), (Flux, Chroma, ZImage, Lumina2)
TRANSFORMERS = [("WebUI", StableDiffusion3), *(("Forge", one) for one in FORGE), *(("Neo", one) for one in NEO)]
UNETS = [("Neo", StableDiffusionXL), ("Neo", Mugen)]
HOSTS = [*TRANSFORMERS, *UNETS]
FAMILY = {StableDiffusion3: "sd3", Flux: "flux", Chroma: "chroma", ZImage: "zimage", Lumina2: "lumina2", StableDiffusionXL: "sdxlrf", Mugen: "mugen"}
WHOLE = {"method": "multidiffusion", "window": "128x128", "matching": 0.0, "gamma": 0.0, "colour_fix": 0.0, "reanchor": "off"}


@pytest.fixture
def loaded(host, tmp_path, monkeypatch):
    """Has a host with such a checkpoint in it from now on when called."""

    def load(name, checkpoint):
        host.sd_models.known.clear()
        host.model = checkpoint()
        host.sd_models.known["base"] = host.model
        host.sd_models.reload_model_weights()
        for family in FAMILY.values():
            setattr(host.shared.opts, f"apt_window_{family}", 64)
        if name != "WebUI":
            become_forge(host, tmp_path, monkeypatch)
        if name == "Neo":
            neo_s_passes(host, monkeypatch)
            monkeypatch.setitem(sys.modules, "k_diffusion.sampling", SimpleNamespace(**{SNR: None}))

    return load


@pytest.fixture
def planned(host, monkeypatch):
    """What the passes that ran had planned to evaluate, for every picture and prompt."""
    found = []
    run = host.adapter("phases").run_phases
    monkeypatch.setattr(host.adapter("sampling"), "run_phases", lambda job, *args: found.append(job.layout.plan.evaluations) or run(job, *args))
    return found


def rows(host):
    return sum(shape[0] for shape in host.model.calls)


@pytest.mark.parametrize(("name", "checkpoint"), HOSTS)
@pytest.mark.parametrize(("sampler", "strength"), [("euler", 0.6), ("heun", 0.6), ("dpmpp_2m", 1.0)])
def test_one_window_as_large_as_the_picture_gives_the_host_s_own(host, loaded, picture, name, checkpoint, sampler, strength):
    loaded(name, checkpoint)
    given = {"init_images": [picture.resize((128, 128))], "sampler_name": sampler, "steps": 6, "denoising_strength": strength}
    own = host.run(host.picture_job(False, **given))[0]
    made = host.run(host.picture_job(WHOLE, **given))[0]
    assert far(made, own) <= 1
    assert far(own, picture.resize((128, 128))) > 4


@pytest.mark.parametrize(("name", "checkpoint"), HOSTS)
@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
def test_a_job_takes_the_evaluations_of_its_plan_and_leaves_nothing(host, samplers, loaded, planned, job_of_kind, name, checkpoint, kind, method):
    loaded(name, checkpoint)
    given = {"sampler_name": "euler", "steps": 4}
    before = host.run(job_of_kind(kind, False, **given))[0]
    host.model.calls.clear()
    first = host.run(host.text_job(False, enable_hr=False, **given)) and rows(host) if kind == "text" else 0
    host.model.calls.clear()
    p = job_of_kind(kind, {"method": method, "word_threshold": 0.0}, **given)
    made = host.run(p)[0]
    assert made.size == (128, 128)
    assert planned == [(rows(host) - first) / 2], "the prompt's and the negative prompt's"
    assert p.extra_generation_params[f"APT window {FAMILY[checkpoint]}"] == 64
    assert {shape[-2:] for shape in host.model.calls} == {(8, 8)}
    assert far(host.run(job_of_kind(kind, False, **given))[0], before) == 0
    if name == "WebUI":
        nothing_left(host, samplers)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_both_hosts_give_the_same_picture_in_a_batch_as_alone(host, loaded, job_of_kind, kind):
    given = {"sampler_name": "dpmpp_2m", "steps": 6}
    loaded("WebUI", StableDiffusion3)
    expected = host.run(job_of_kind(kind, {"window_batch": 1}, **given))[0]
    loaded("Forge", StableDiffusion3)
    assert far(host.run(job_of_kind(kind, {"window_batch": 8}, batch_size=2, **given))[0], expected) <= 1


def test_what_a_mask_keeps_stays(host, loaded, job_of_kind, picture):
    loaded("Forge", Flux)
    mask = Image.linear_gradient("L").resize((64, 64)).point(lambda value: 255 * (value > 128))
    made = host.run(job_of_kind("picture", ON | {"colour_fix": 0.0}, image_mask=mask, sampler_name="euler", steps=4))[0]
    plain = host.run(job_of_kind("picture", False, image_mask=mask, sampler_name="euler", steps=4))[0]
    assert far(made.crop((0, 0, 128, 56)), plain.crop((0, 0, 128, 56))) <= 1
    assert far(made, plain) > 4


def test_regions_have_their_own_words(host, loaded, job_of_kind):
    loaded("Forge", Flux)
    given = {"sampler_name": "euler", "steps": 4}
    plain = host.run(job_of_kind("picture", {"method": "multidiffusion", "matching": 0.0, "colour_fix": 0.0}, **given))[0]
    asked = {"method": "multidiffusion", "matching": 0.0, "colour_fix": 0.0, "regions": "0-50% x 0-100%: a kingfisher over water"}
    made = host.run(job_of_kind("picture", asked, **given))[0]
    assert far(made.crop((0, 0, 48, 128)), plain.crop((0, 0, 48, 128))) > 1
    assert far(made.crop((120, 0, 128, 128)), plain.crop((120, 0, 128, 128))) <= 1


@pytest.mark.parametrize(("name", "checkpoint"), [served for served in HOSTS if served[1] in (Chroma, ZImage, Lumina2)])
def test_regions_are_refused_where_longer_words_of_theirs_would_stretch_the_others_prompts(host, loaded, job_of_kind, name, checkpoint):
    loaded(name, checkpoint)
    texts = host.model.get_learned_conditioning(["a leaf"]), host.model.get_learned_conditioning(["a leaf on a stone"])
    assert len(texts[0][0]) < len(texts[1][0])
    with pytest.raises(host.adapter("errors").APTError, match=r"regions have no words of their own on (Chroma|Z-Image|Lumina 2) checkpoints, whose prompts"):
        host.run(job_of_kind("picture", {"enabled": True, "regions": "0-50% x 0-100%: a kingfisher over water"}, sampler_name="euler"))
    assert not host.model.calls


REFUSED = [
    ({}, {"sampler_name": "dpmpp_2s_ancestral"}, "sampler 'dpmpp_2s_ancestral' adds noise in proportions that are wrong"),
    ({}, {"sampler_name": "ddim"}, "sampler 'ddim' steps through the timesteps"),
]
REFUSED_WITH_UNETS = [*REFUSED, ({"window": "80x80"}, {}, "multiples of 32 pixels; use 64x64")]
REFUSED_WITH_TRANSFORMERS = [
    *REFUSED,
    ({"window": "72x72"}, {}, "multiples of 16 pixels; use 64x64"),
    ({}, {"tiling": True}, "a seamless picture cannot be made with this checkpoint, whose network has no layers that go round the border"),
    (
        {"method": "accdiffusion", "word_threshold": 0.5},
        {},
        "words per window cannot be told apart on (SD3|Flux|Chroma|Z-Image|Lumina 2) checkpoints, which have no cross-attention",
    ),
]


@pytest.mark.parametrize(
    ("name", "checkpoint", "asked", "given", "sentence"),
    [(*served, *case) for kind, cases in ((TRANSFORMERS, REFUSED_WITH_TRANSFORMERS), (UNETS, REFUSED_WITH_UNETS)) for served in kind for case in cases],
)
def test_what_cannot_be_right_is_refused_in_a_sentence(host, loaded, job_of_kind, name, checkpoint, asked, given, sentence):
    loaded(name, checkpoint)
    with pytest.raises(host.adapter("errors").APTError, match=sentence):
        host.run(job_of_kind("picture", {"enabled": True} | asked, **{"sampler_name": "euler"} | given))
    assert not host.model.calls


@pytest.mark.parametrize(("name", "checkpoint"), UNETS)
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_unets_tell_windows_words_apart(host, loaded, job_of_kind, name, checkpoint, kind):
    loaded(name, checkpoint)
    given = {"prompt": "a butterfly on red flowers", "sampler_name": "euler"}
    whole = host.run(job_of_kind(kind, {"method": "accdiffusion", "word_threshold": 0.0}, **given))[0]
    p = job_of_kind(kind, {"method": "accdiffusion", "word_threshold": 1.0}, **given)
    assert far(host.run(p)[0], whole) > 1
    assert not p.comments


def test_a_picture_whose_words_are_looked_for_is_noised_as_a_flow_s(host, loaded):
    loaded("Neo", StableDiffusionXL)
    known, clean, noise = host.detect.host(), torch.ones(1, 4, 8, 8), torch.full((4, 8, 8), 3.0)
    time = torch.tensor(0.25)
    assert torch.equal(known.noised(host.model, clean, noise, time), torch.full_like(clean, 0.75 + 0.75))
    host.model.forge_objects.unet.model.predictor.prediction_type = "epsilon"
    assert torch.equal(known.noised(host.model, clean, noise, time), torch.full_like(clean, 1.75))


@pytest.mark.parametrize("checkpoint", FORGE)
def test_control_units_which_the_network_would_not_look_at_are_refused(host, loaded, checkpoint):
    loaded("Forge", checkpoint)
    host.detect.host().control_of(None)
    host.model.forge_objects.unet.controlnet_linked_list = object()
    with pytest.raises(ValueError, match="ControlNet does nothing on this host for checkpoints of rectified flow; turn its units off"):
        host.detect.host().control_of(None)


@pytest.mark.parametrize(
    ("name", "checkpoint", "noisy"),
    [(*served, noisy) for served, noisy in zip(HOSTS, [(), (), *[("euler_ancestral", "dpm_2_ancestral")] * 2, *[NOISE_BY_SNR] * 6], strict=True)],
)
def test_forge_with_flux_s_predictor_and_neo_add_noise_as_it_has_to_with_some_samplers(host, loaded, name, checkpoint, noisy):
    loaded(name, checkpoint)
    assert tuple(host.detect.host().flow_samplers(host.model)) == noisy


def test_kontext_is_refused_whose_reference_every_window_would_see(host, loaded, job_of_kind, monkeypatch):
    loaded("Neo", Flux)
    monkeypatch.setitem(DYNAMIC, "kontext", True)
    with pytest.raises(host.adapter("errors").APTError, match="Flux Kontext would see the whole reference picture in every window; choose another Flux"):
        host.run(job_of_kind("picture", sampler_name="euler"))
    assert not host.model.calls
    monkeypatch.setitem(DYNAMIC, "kontext", False)
    host.run(job_of_kind("picture", sampler_name="euler"))
    assert host.model.calls


def test_a_file_s_name_alone_makes_no_reference(host, loaded, job_of_kind, monkeypatch):
    """Of other networks than Flux's the host does not ask for one."""
    loaded("Neo", Chroma)
    monkeypatch.setitem(DYNAMIC, "kontext", True)
    host.run(job_of_kind("picture", sampler_name="euler"))
    assert host.model.calls


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_plan_goes_by_the_shift_that_its_pass_will_have(host, loaded, job_of_kind, planned, monkeypatch, kind):
    """Neo gives it to the checkpoint when the pass begins; until then, and for the panel, the last one is there."""
    loaded("Neo", ZImage)
    own, read = host.sd_samplers_kdiffusion.KDiffusionSampler.get_sigmas, []

    def get_sigmas(self, p, steps):
        assert self.model_wrap.inner_model is host.model, "which one of Neo's schedules asks"
        read.append(own(self, p, steps))
        return read[-1]

    monkeypatch.setattr(host.sd_samplers_kdiffusion.KDiffusionSampler, "get_sigmas", get_sigmas)
    p = job_of_kind(kind, {"gamma": 0.5}, sampler_name="euler", steps=8)
    p.distilled_cfg_scale, p.hr_distilled_cfg = (9.0, 2.0) if kind == "text" else (2.0, 9.0)
    host.run(p)
    prepared, *passes = read
    shifted = [float(levels[-2]) for levels in passes]
    assert torch.equal(prepared, passes[-1])
    assert min(shifted) < max(shifted) if kind == "text" else min(shifted) == max(shifted)
    predictor = host.model.forge_objects.unet.model.predictor
    predictor.set_parameters(shift=9.0)
    before = predictor.sigmas.clone()
    asked = {"img2img": kind == "picture", "first": [64, 64], "given": [64, 64], "target": [128, 128], "resize_mode": 0, "steps": 8, "hires_steps": 0}
    asked |= {"denoising": 0.6, "sampler": "euler", "scheduler": "Automatic", "upscaler": "Lanczos", "settings": {"gamma": 0.5}}
    plan = host.panel.plan(asked | {"shift": 2.0})
    assert torch.equal(read[-1], prepared)
    assert plan["evaluations"] == planned[-1]
    assert torch.equal(predictor.sigmas, before), "a job may be running"
    host.panel.plan(asked)
    assert not torch.equal(read[-1], prepared), "without a word, the last one's"


@pytest.mark.parametrize("name", ["Forge", "Neo"])
def test_other_checkpoints_of_rectified_flow_are_refused_in_a_sentence(host, loaded, job_of_kind, name):
    loaded(name, type("QwenImage", (Flux,), {}))
    with pytest.raises(host.adapter("errors").APTError, match=r"QwenImage checkpoints of rectified flow are not supported yet; choose an? .*Chroma"):
        host.run(job_of_kind("picture", sampler_name="euler"))
    assert not host.model.calls


def test_the_job_is_the_core_s_own_in_k_diffusion_s_coordinates(host, loaded, job_of_kind, sampling, monkeypatch):
    """As the command line has a flow model by `checkpoints.networks.flow_denoiser`: x = z + sigma n, and Euler's steps in sigma."""
    loaded("Forge", Flux)
    kept = {}
    run = host.adapter("phases").run_phases

    def run_phases(job, z, *args):
        kept.update(job=job, z=z, made=run(job, z, *args))
        return kept["made"]

    monkeypatch.setattr(host.adapter("sampling"), "run_phases", run_phases)
    p = job_of_kind("picture", {"gamma": 0.5}, sampler_name="euler", steps=6, cfg_scale=1.0)
    host.run(p)
    network, text = host.model.model.diffusion_model, host.model.get_learned_conditioning([p.prompt])
    denoise, _ = flow_denoiser(lambda state, t: network(state, t, text.expand(len(state), -1, -1)))
    plan = kept["job"].layout.plan

    def noise(phase, shape):
        return host.rng.ImageRNG(shape[1:], p.seeds, subseeds=p.subseeds, subseed_strength=p.subseed_strength).next()

    sample = sample_with(ViewCalls(denoise, 4), lambda phase: partial(sampling.sample_euler, disable=True), noise, model_calls=plan.calls)
    expected = upscale(kept["z"], kept["z"], plan, sample, upsample=lambda latent, size: kept["job"].enlarged(size))
    assert float((kept["made"] - expected).abs().max()) < 1e-4 * float(expected.abs().max())
