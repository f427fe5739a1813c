"""What the loaded checkpoint is to the engine, in whichever host."""

from __future__ import annotations

from typing import Any

from modules import sd_models, shared

from apt_ext.webui.hosts.detect import host
from apt_ext.webui.model import window_option

__all__ = ["family_of", "is_chosen", "native_side"]


def family_of(model: Any) -> str:
    """The family of a checkpoint.

    Raises:
        ValueError: for one that patch fusion does not work with here.
    """
    return host().family(model)


def is_chosen(model: Any, name: str | None) -> bool:
    """Whether a checkpoint is the one that the host knows by this name; also where it knows none, or no name is given.

    Forge and Neo load what is chosen with the next job, the others when they come to it, and a refiner stays loaded after its job.
    """
    chosen = sd_models.get_closet_checkpoint_match(name)
    return chosen is None or bool(chosen.filename == model.sd_checkpoint_info.filename)


def native_side(model: Any) -> int:
    """The native window of a checkpoint's family in pixels, as the settings page has it."""
    return int(getattr(shared.opts, window_option(family_of(model))))
