"""ControlNet's units on Forge and its kin, for every window."""

from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.host.double.jobs import pixels
from tests.host.forge.backend import UnetPatcher
from tests.host.forge.units import Newer, Unit, blobs

pytestmark = pytest.mark.usefixtures("memory", "settings_page")


@pytest.mark.parametrize(("package", "kind_of_unit"), [("backend", Unit), ("ldm_patched", Newer)])
@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("method", ["multidiffusion", "demofusion"])
def test_control_follows_the_hint_over_the_whole_picture(host, forge, job_of_kind, kind, method, package, kind_of_unit, monkeypatch):
    forge(package)
    settings = {"method": method, "colour_fix": 0.0}
    plain = host.run(job_of_kind(kind, settings))[0]
    unit = kind_of_unit(blobs(), previous=Unit(blobs(seed=1) * 0))
    host.model.forge_objects_after_applying_lora.unet.controlnet_linked_list = unit
    if kind == "text":  # not in the first pass
        get = unit.get_control
        monkeypatch.setattr(unit, "get_control", wraps(get)(lambda x, *args: get(x, *args) if host.shared.state.textinfo else x[:, :1] * 0))
    made = host.run(job_of_kind(kind, settings))[0]

    def of_latent(values):
        return values.reshape(16, 8, 16, 8, -1).mean((1, 3, 4))

    ends = np.isin(pixels(made), (0, 255)) | np.isin(pixels(plain), (0, 255))
    seen = of_latent(ends.astype(float)) == 0  # where no pixel is cut off at black or white
    assert seen.sum() > 64
    change = of_latent(pixels(made) - pixels(plain))[seen]

    def follows(hint):
        return np.corrcoef(change, of_latent(hint.mean(1)[0].numpy())[seen])[0, 1]

    assert follows(blobs()) > 0.9
    assert follows(torch.nn.functional.interpolate(blobs(), (64, 64), mode="area").tile(1, 1, 2, 2)) < 0.3
    assert {shape[-2:] for shape in unit.shown if shape[-1] != 128} == {(64, 64)}
    assert unit.ran.count("begin") == unit.ran.count("end") == (2 if kind == "text" else 1)
    assert unit.cond_hint is None


@pytest.mark.parametrize("of_latents", [{"cond_hint_original": None}, {"latent_format": object()}, {"extra_concat_orig": [blobs()]}])
def test_units_whose_hint_is_no_picture_are_refused_in_a_sentence(host, forge, of_latents):
    forge()
    unit = Newer(blobs())
    vars(unit).update(of_latents)
    host.model.forge_objects.unet.controlnet_linked_list = unit
    with pytest.raises(ValueError, match="a ControlNet unit of the kind Newer cannot be cut to windows; turn that unit off"):
        host.detect.host().control_of(None)


def test_a_copy_of_the_units_list_of_options_copies_no_engine(host, forge):
    forge()
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    run = SimpleNamespace(begin=lambda x, t: None, wrap=lambda model: model, end=lambda x, t, out: out)
    with host.adapter("forge_seam").fused_inside(sampler.model_wrap_cfg, run):
        unet = host.model.forge_objects.unet
        copied = unet.clone()
        assert isinstance(copied, UnetPatcher)
        assert copied.model_options["model_function_wrapper"] is unet.model_options["model_function_wrapper"]
