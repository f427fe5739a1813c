"""Tiny pipelines, saved once a session as folders and as single files, and loaded by the real code."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.packages import missing
from tests.checkpoints.flow_file import of_width
from tests.checkpoints.single_file import save_single_file
from tests.checkpoints.tiny import pipeline

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's package is imported: no test needs a network
UNETS = ("sd1", "sd2v", "sdxl")


@pytest.fixture(autouse=True, scope="session")
def _installed() -> None:
    lacking = missing()
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed: pip install -r requirements/checkpoints.txt")
    from apt_ext.checkpoints.packages import quieten

    quieten()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a kind -> the folder of its pipeline; "sd1.safetensors" -> its single file; "sd1-alone.safetensors" -> one of its network alone."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def find(name: str) -> Path:
        kind, _, of = name.removesuffix(".safetensors").partition("-")
        if name.endswith(".safetensors"):
            save_single_file(pipeline(kind, root / f"{kind}_words"), kind, root / name, words=not of, vae=of != "alone")
        else:
            pipeline(kind, root / f"{kind}_words").save_pretrained(root / name)
        return root / name

    return find


@pytest.fixture(scope="session")
def opened(checkpoints: Callable[[str], Path]) -> Callable[..., Any]:
    """A checkpoint by its kind, loaded from its folder; the same one for the same arguments."""
    from apt_ext.checkpoints.opening import open_checkpoint

    return cache(lambda kind, **more: open_checkpoint(str(checkpoints(kind)), device="cpu", **{"native": 64 if kind == "flux" else None} | more))


@pytest.fixture
def narrow_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' reader of Flux's single files takes the tiny one's width."""
    from diffusers.loaders import single_file_model

    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", of_width(entry["checkpoint_mapping_fn"], 32))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """72 x 96 pixels, more than one window of the tiny models in each direction once enlarged."""
    x, y = np.meshgrid(np.linspace(0, 255, 72), np.linspace(0, 255, 96))
    path = tmp_path / "photo.png"
    Image.fromarray(np.stack([x, y, 127 + 127 * np.sin(x / 9)], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def some() -> Callable[..., torch.Tensor]:
    """Noise of a shape, the same every time."""
    return lambda *shape, seed=0: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
