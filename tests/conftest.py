"""Shared by the tests: k-diffusion's real samplers, and the double of the host."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from apt_ext.demo.samplers import k_sampling
from tests.host_double import Host, loaded_host

__all__ = ["k_sampling"]


@pytest.fixture(scope="session")
def sampling() -> ModuleType:
    """`k_diffusion.sampling`, unchanged."""
    return k_sampling()


@pytest.fixture
def host() -> Iterator[Host]:
    """The double of the host, with the adapter imported against it."""
    with loaded_host() as host:
        yield host
