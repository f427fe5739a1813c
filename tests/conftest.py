"""Shared by the tests: k-diffusion's real samplers, and the double of the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from apt_ext.demo.samplers import k_sampling
from tests.host.double import Host, loaded_host

__all__ = ["k_sampling"]

with suppress(ImportError):  # the tests in a browser and those of a running WebUI go without it
    from hypothesis import settings

    # In CI the same examples every time, so that a red run is red again; elsewhere new ones, which find more.
    settings.register_profile("here", deadline=None)
    settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
    settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def sampling() -> ModuleType:
    """`k_diffusion.sampling`, unchanged."""
    return k_sampling()


@pytest.fixture
def host() -> Iterator[Host]:
    """The double of the host, with the adapter imported against it. What the script raises is swallowed there, but not here."""
    with loaded_host() as host:
        yield host
        assert [error for runner in host.runners for error in runner.reports] == []


@pytest.fixture
def settings_page(host: Host) -> None:
    """The adapter's settings, with windows as small as the double's pictures."""
    host.settings.add_settings()
    host.shared.opts.apt_window_sd1 = 64


@pytest.fixture
def samplers(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every sampler that the host makes."""
    made: list[Any] = []
    create = host.sd_samplers.create_sampler

    def create_sampler(name, model):
        made.append(create(name, model))
        return made[-1]

    monkeypatch.setattr(host.sd_samplers, "create_sampler", create_sampler)
    return made


@pytest.fixture
def picture() -> Image.Image:
    """64 x 64 pixels with something in every channel."""
    size = (64, 64)
    return Image.merge("RGB", [Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size), Image.new("L", size, 90)])


@pytest.fixture
def job_of_kind(host: Host, picture: Image.Image) -> Callable[..., Any]:
    """A processing object of either tab, "text" or "picture"."""

    def make(kind, *args, **given):
        args = args or ({"enabled": True},)
        return host.text_job(*args, **given) if kind == "text" else host.picture_job(*args, **{"init_images": [picture]} | given)

    return make
