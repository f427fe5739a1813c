"""What is known of a checkpoint by its class."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.mark.parametrize(
    ("marks", "family", "native"),
    [
        ({}, "sd1", 64),
        ({"is_sd2": True}, "sd2", 512),
        ({"is_sd2": True, "parameterization": "v"}, "sd2v", 768),
        ({"is_sdxl": True}, "sdxl", 1024),
    ],
)
def test_families_and_their_native_windows(host, monkeypatch, marks, family, native):
    for name, value in marks.items():
        monkeypatch.setattr(host.model, name, value)
    assert host.adapter("model").family_of(host.model) == family
    assert host.checkpoint.native_side(host.model) == native
    facts = host.adapter("model").facts_of(family, torch.linspace(0.03, 14.6, 10), native)
    assert facts.window == (native // 8, native // 8)
    assert facts.sigma_max == pytest.approx(14.6)
    assert facts.window.rows % facts.multiple == 0


def test_the_crop_corners_embedding_is_the_checkpoints_own(host, monkeypatch):
    find = host.adapter("model").crop_embedding
    assert find(host.model) is None
    wanted = SimpleNamespace(input_key="crop_coords_top_left")
    monkeypatch.setattr(host.model, "conditioner", SimpleNamespace(embedders=[SimpleNamespace(input_key="txt"), wanted]), raising=False)
    assert find(host.model) is wanted
