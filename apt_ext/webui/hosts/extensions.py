"""What other extensions have done to the loaded checkpoint that does not go together with windows: set aside for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from apt_ext.webui.hosts.detect import host

__all__ = ["HYPERTILE", "hypertile_aside", "idle"]

HYPERTILE = "APT: Hypertile takes every window for a picture of the whole one's aspect, so inside the windows the U-Net works without it."
HYPERTILE_LAYER = "__webui_hypertile_params"  # on a layer of the UNet that Hypertile has in its hands


@contextmanager
def hypertile_aside(model: Any) -> Iterator[bool]:
    """Within the block, the host's Hypertile leaves the UNet alone; afterwards it is as it was.

    Yields:
        Whether it was at work.
    """
    layers = [vars(layer).get(HYPERTILE_LAYER) for layer in host().unet(model).modules()]
    working = [layer for layer in layers if layer is not None and layer.enabled]
    try:
        for layer in working:
            layer.enabled = False
        yield bool(working)
    finally:
        for layer in working:
            layer.enabled = True


def idle(module: nn.Module, method: str = "forward") -> bool:
    """Whether a method is the module's class's own, also where an extension has put it back as an attribute of the instance."""
    found = vars(module).get(method)
    return found is None or (getattr(found, "__self__", None) is module and getattr(found, "__func__", None) is getattr(type(module), method))
