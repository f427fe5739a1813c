"""Shared by the tests: k-diffusion's real samplers."""

from __future__ import annotations

from types import ModuleType

import pytest

from apt_ext.demo.samplers import k_sampling

__all__ = ["k_sampling"]


@pytest.fixture(scope="session")
def sampling() -> ModuleType:
    """`k_diffusion.sampling`, unchanged."""
    return k_sampling()
