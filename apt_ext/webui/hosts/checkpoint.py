"""What the loaded checkpoint is to the engine, in whichever host."""

from __future__ import annotations

from typing import Any

from modules import shared

from apt_ext.webui.hosts.detect import host
from apt_ext.webui.model import window_option

__all__ = ["family_of", "native_side"]


def family_of(model: Any) -> str:
    """The family of a checkpoint.

    Raises:
        ValueError: for one that patch fusion does not work with here.
    """
    return host().family(model)


def native_side(model: Any) -> int:
    """The native window of a checkpoint's family in pixels, as the settings page has it."""
    return int(getattr(shared.opts, window_option(family_of(model))))
