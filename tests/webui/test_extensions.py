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
