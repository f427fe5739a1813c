"""Beside other extensions: what they have done to the checkpoint is noticed, and is there again afterwards."""

from types import SimpleNamespace

import pytest

from tests.host.double.jobs import ON, far

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.fixture
def hypertile(host):
    """The host's Hypertile on a layer of the UNet; -> its parameters and, of every call, whether it was at work."""
    params = SimpleNamespace(enabled=True)
    setattr(host.model.model.diffusion_model.middle_block[0], "__webui_hypertile_params", params)
    host.model.on_call = lambda: seen.append((bool(host.shared.state.textinfo), params.enabled))
    seen: list[tuple[bool, bool]] = []
    return params, seen


@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_hypertile_is_out_in_the_windows_and_back_afterwards(host, job_of_kind, hypertile, kind, method):
    params, seen = hypertile
    p = job_of_kind(kind, {"method": method})
    host.run(p)
    first = [enabled for in_phases, enabled in seen if not in_phases]
    assert all(first) if kind == "text" else not any(first), "only the first pass, which has the whole picture, is Hypertile's"
    inside = [enabled for in_phases, enabled in seen if in_phases]
    assert inside
    assert not any(inside)
    assert params.enabled
    assert list(p.comments) == [host.extensions.HYPERTILE]


def test_hypertile_is_back_after_an_error(host, hypertile):
    params, _ = hypertile

    def on_call():
        if host.shared.state.textinfo:
            raise RuntimeError("broken")

    host.model.on_call = on_call
    with pytest.raises(RuntimeError, match="broken"):
        host.run(host.text_job(ON))
    assert params.enabled


def test_where_hypertile_is_off_nothing_is_said(host, hypertile):
    params, _ = hypertile
    params.enabled = False
    p = host.text_job(ON)
    host.run(p)
    assert not p.comments
    assert not params.enabled


@pytest.mark.parametrize("tiled", [True, False])
def test_a_tiled_vae_of_another_extension_is_said(host, job_of_kind, tiled):
    expected = host.run(job_of_kind("text", {"tiled_vae": tiled}))[0]
    decoder = host.model.first_stage_model.decoder
    own = decoder.forward
    decoder.forward = lambda z: own(z)
    p = job_of_kind("text", {"tiled_vae": tiled})
    assert far(host.run(p)[0], expected) == 0
    assert list(p.comments) == [host.job.OTHER_TILES] * tiled


class ModelSampling:
    """reForge's own extension for a checkpoint's noise levels: its first arguments say whether it is on, and in which mode."""

    def __init__(self, before, count):
        self.args_from, self.args_to = before, before + count

    def title(self):
        return "Advanced Model Sampling for reForge"

    def process(self, p):
        pass

    def postprocess(self, p, processed):
        pass


@pytest.fixture
def with_model_sampling(job_of_kind):
    """A job of a kind, with that extension's arguments behind APT's."""

    def made(kind, *args):
        p = job_of_kind(kind, ON)
        p.scripts.alwayson_scripts.append(ModelSampling(len(p.script_args), len(args)))
        p.script_args += args
        return p

    return made


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("mode", ["SD3", "Aura Flow", "Flux"])
def test_a_checkpoint_made_one_of_rectified_flow_is_refused_in_a_sentence(host, with_model_sampling, kind, mode):
    sentence = f"^Advanced Model Sampling's mode '{mode}' makes this checkpoint one of rectified flow, which no window knows of; turn it or APT off$"
    with pytest.raises(host.adapter("errors").APTError, match=sentence):
        host.run(with_model_sampling(kind, True, mode, "v_prediction"))
    assert not host.model.calls


@pytest.mark.parametrize("args", [(False, "SD3", "v_prediction"), (True, "Discrete", "v_prediction"), ()])
def test_other_modes_and_a_switch_that_is_off_are_no_reason(host, with_model_sampling, args):
    assert host.run(with_model_sampling("picture", *args))[0].size == (128, 128)
