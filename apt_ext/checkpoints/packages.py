"""The packages of this extra, imported when they are needed, so that their absence is one sentence."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from apt_ext.demo.samplers import ensure_torchvision

__all__ = ["compel_or_none", "diffusers", "missing", "quieten"]

NEEDED = ("diffusers", "transformers", "accelerate")


def missing(*names: str) -> list[str]:
    """Those of the packages (the needed ones, where none are named) that are not installed."""
    return [name for name in names or NEEDED if importlib.util.find_spec(name) is None]


def diffusers() -> ModuleType:
    """diffusers itself.

    Raises:
        ValueError: where it or what it needs is not installed.
    """
    lacking = missing()
    if lacking:
        raise ValueError(f"a checkpoint of your own needs {', '.join(lacking)}, which is not installed; run: pip install -r requirements/checkpoints.txt")
    ensure_torchvision()
    return importlib.import_module("diffusers")


def quieten() -> None:
    """Let diffusers and transformers say nothing but errors, and show no bars of their own: for a program that says things itself."""
    for package in (diffusers(), importlib.import_module("transformers")):
        package.utils.logging.set_verbosity_error()
        package.utils.logging.disable_progress_bar()


def compel_or_none() -> ModuleType | None:
    """compel, which encodes long and weighted prompts, where it is installed."""
    if missing("compel"):
        return None
    ensure_torchvision()
    return importlib.import_module("compel")
