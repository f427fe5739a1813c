"""Which host this is."""

from __future__ import annotations

from pathlib import Path

import modules

__all__ = ["check_host"]

OTHER_BACKENDS = ("modules_forge", "backend", "ldm_patched")  # packages of Forge, Forge Neo, reForge and Classic


def check_host() -> None:
    """Make sure that the model is called the way that APT listens to.

    Raises:
        ValueError: for a host with another backend, where a job would come out as if APT were off.
    """
    root = Path(next(iter(modules.__path__))).parent
    found = [name for name in OTHER_BACKENDS if (root / name).is_dir()]
    if found:
        raise ValueError(f"this WebUI has a backend of its own ({found[0]}), which APT does not reach yet; turn APT off, or use AUTOMATIC1111's WebUI 1.10.1")
