"""Which checkpoints, samplers and borders are served on Forge and its kin, and what the refiner does there."""

from functools import wraps
from types import SimpleNamespace

import pytest
import torch

from tests.host.double.jobs import ON
from tests.host.double.model import Model
from tests.host.forge import forged, nothing_left
from tests.host.forge.units import Unit, blobs

pytestmark = pytest.mark.usefixtures("memory", "settings_page")


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_refiner_s_model_gets_the_engine_too(host, samplers, forge, job_of_kind, kind):
    forge()
    refiner = forged(Model("refiner", width=3))
    host.sd_models.known["refiner"] = refiner
    given = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"phases": "progressive"}, steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, **given)
    (made,) = host.run(p)
    assert made.size == (192, 192)
    assert refiner.calls
    assert {shape[-2:] for shape in refiner.calls} == {(8, 8)}
    assert not p.scripts.reports
    nothing_left(host, samplers)
    assert "model_function_wrapper" not in refiner.forge_objects.unet.model_options


def test_sdxl_is_told_every_window_s_corner(host, forge):
    forge()
    host.model.is_sdxl, host.model.embedder = True, lambda n: n[:, None].expand(-1, 256)
    embed = host.detect.host().crop_embedding(host.model)
    assert embed(torch.tensor([[3.0, 5.0], [7.0, 9.0]])).tolist() == [[3.0] * 256 + [5.0] * 256, [7.0] * 256 + [9.0] * 256]


@pytest.mark.parametrize(("marks", "family"), [({}, "sd1"), ({"is_sd2": True}, "sd2"), ({"is_sd2": True}, "sd2v"), ({"is_sdxl": True}, "sdxl")])
def test_families(host, forge, monkeypatch, marks, family):
    forge()
    for name, value in marks.items():
        monkeypatch.setattr(host.model, name, value)
    if family == "sd2v":
        monkeypatch.setattr(host.model.forge_objects.unet.model.predictor, "prediction_type", "v_prediction")
    assert host.checkpoint.family_of(host.model) == family


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_model_that_is_not_known_is_refused_in_a_sentence(host, forge, job_of_kind, kind):
    forge()
    host.model.is_sd1 = False
    with pytest.raises(host.adapter("errors").APTError, match=r"Model checkpoints are not supported yet; choose an SD 1\.x, SDXL, Flux or Chroma"):
        host.run(job_of_kind(kind))
    assert not host.model.calls


def test_a_sampler_that_is_another_one_there_is_refused_in_a_sentence(host, forge, job_of_kind, monkeypatch):
    """Neo's UniPC goes by noise levels."""
    forge()
    monkeypatch.delattr(host.sd_samplers_timesteps.CompVisSampler, "get_timesteps")
    asked = {"enabled": True, "method": "multidiffusion", "skip_residual": False}
    with pytest.raises(host.adapter("errors").APTError, match="sampler 'unipc' is not one that this version knows; use Euler a"):
        host.run(job_of_kind("picture", asked, sampler_name="unipc", steps=6))
    assert not host.model.calls


def test_sd3_is_refused_by_those_that_keep_1_10_1_s_checkpoints(host, forge):
    forge("ldm_patched")
    host.model.is_sd3 = True
    with pytest.raises(host.adapter("errors").APTError, match=r"SD3 checkpoints are not supported yet; choose an SD 1\.x, SD 2\.x or SDXL checkpoint"):
        host.run(host.text_job(ON))


def test_before_the_first_job_there_is_no_checkpoint(host, forge, monkeypatch):
    forge()
    assert host.detect.host().loaded() is host.model
    monkeypatch.setattr(host.sd_models.model_data, "sd_model", SimpleNamespace(cond_stage_model=None))
    assert host.detect.host().loaded() is None


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_tiling_that_the_host_does_not_do_is_refused_in_a_sentence(host, forge, monkeypatch, job_of_kind, kind):
    forge()
    monkeypatch.setattr(host.sd_hijack.model_hijack, "apply_circular", lambda on: None)
    with pytest.raises(host.adapter("errors").APTError, match="Tiling is on, but this host has left the checkpoint as it is"):
        host.run(job_of_kind(kind, tiling=True))
    assert not host.model.calls


@pytest.mark.parametrize("package", ["backend", "ldm_patched"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_every_phase_begins_with_what_the_pass_has_put_on_its_own_checkpoint(host, forge, job_of_kind, monkeypatch, kind, package):
    """Networks, ControlNet's units and other extensions' functions, after the refiner too, which the host gives its networks alone."""
    forge(package)
    refiner, unit, seen = forged(Model("refiner", width=3)), Unit(blobs(192)), []
    host.sd_models.known["refiner"] = refiner
    for model in (host.model, refiner):
        monkeypatch.setattr(model, "on_call", lambda model=model: seen.append([host.shared.state.textinfo, model.sd_checkpoint_info, model.strength]))
    get = unit.get_control

    def theirs(apply, args):
        made = apply(args["input"], args["timestep"], **args["c"])
        seen[-1] += ["unit" if "control" in args["c"] else "", "function"]
        return made

    monkeypatch.setattr(unit, "get_control", wraps(get)(lambda x, *args: get(x, *args) if host.shared.state.textinfo else x[:, :1] * 0))
    tell = host.processing.StableDiffusionProcessing.tell_scripts

    def attach(self, *args, **kwargs):
        """As an extension does before a pass, and the engine after it."""
        run = self.scripts.process_before_every_sampling

        def process_before_every_sampling(**given):
            unet = host.shared.sd_model.forge_objects.unet = host.shared.sd_model.forge_objects.unet.clone()
            unet.controlnet_linked_list = unit
            unet.set_model_unet_function_wrapper(theirs)
            run(**given)

        self.scripts.process_before_every_sampling = process_before_every_sampling
        tell(self, *args, **kwargs)
        self.scripts.process_before_every_sampling = run

    monkeypatch.setattr(host.processing.StableDiffusionProcessing, "tell_scripts", attach)
    given = {"hr_scale": 3.0, "hr_prompt": "a leaf <lora:0.2>"} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"phases": "progressive"}, prompt="a leaf <lora:0.1>", steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, **given)
    host.run(p)
    of_pass = [("base", 0.2 if kind == "text" else 0.1, "unit", "function"), ("refiner", 0.1)]
    found = [(text.split()[2], *rest) for text, *rest in seen if text]
    assert [one for index, one in enumerate(found) if index == 0 or one != found[index - 1]] == [(phase, *one) for phase in ("1/2", "2/2") for one in of_pass]
    assert p.extra_network_data == {"lora": [0.1]}


@pytest.mark.parametrize("package", [None, "backend", "ldm_patched"])
def test_a_checkpoint_that_is_made_anew_is_the_one_that_the_sampler_prepares(host, forge, package):
    if package:
        forge(package)
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    first = host.detect.host().first_checkpoint(SimpleNamespace(disable_extra_networks=True), sampler.model_wrap_cfg)
    host.sd_models.known |= {"refiner": forged(Model("refiner")), "base": forged(Model("base"))}
    host.sd_models.reload_model_weights(info="refiner")
    first.restore()
    assert host.shared.sd_model is host.sd_models.known["base"] is not host.model
    assert sampler.model_wrap is sampler.model_wrap_cfg.model_wrap
    assert sampler.model_wrap.inner_model is host.shared.sd_model
