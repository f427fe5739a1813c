"""Seamless pictures: the host's "Tiling", and extensions for one direction, let every layer of the checkpoint go round its input's border.

That is right for the whole picture, and so for dilated views of it. A window would be wrapped onto itself: while windows are in the model its
layers end where they do otherwise, and the windows themselves go round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from modules import shared
from torch import nn

from apt_ext.core.borders import NOWHERE
from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.types import Around
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.hosts.extensions import idle
from apt_ext.webui.model import FAMILIES

__all__ = ["check_seamless", "seamless_axes", "views_with_borders", "with_borders"]

SECOND = "a seamless picture cannot be made with a second checkpoint, whose layers do not go round the border; leave the refiner and the hires checkpoint out"
SWITCHED_OFF = (
    "Tiling is on, but this host has left the checkpoint as it is (Forge has switched its Tiling off), so the sides of the picture would not meet; turn"
    " Tiling off"
)
PART = (
    "the sides of this picture no longer meet, since only a part of it is worked on; keep its aspect (no cropping, no 'only masked'), or turn Tiling or"
    " the extension for seamless pictures off"
)
TRANSFORMER = "a seamless picture cannot be made with this checkpoint, whose network has no layers that go round the border; turn Tiling off"


def seamless_axes(model: Any, tiling: bool) -> Around:
    """The directions that a job's picture is seamless along.

    Args:
        model: the checkpoint as the host has made it ready for the job, or None where there is no job yet.
        tiling: whether the host's own "Tiling" is on, which is both.

    Raises:
        ValueError: where it is on and the checkpoint cannot, or does not, go round the border.
    """
    if model is None:
        return Around(tiling, tiling)
    if tiling and not FAMILIES[host().family(model)].unet:
        raise ValueError(TRANSFORMER)
    parts = [host().unet(model), *host().vae_halves(model).values()]
    found = [_axes(layer) for part in parts for layer in _convolutions(part)]
    around = Around(any(axes.rows for axes in found), any(axes.columns for axes in found))
    if tiling and around != Around(True, True):
        raise ValueError(SWITCHED_OFF)
    return around


def check_seamless(p: Any, around: Around) -> None:
    """Make sure that the sides of a job's picture meet, now that the host has laid it out.

    Raises:
        ValueError: where they do not, or a second checkpoint takes part.
    """
    if around == NOWHERE:
        return
    if getattr(p, "hr_checkpoint_info", None) is not None or getattr(p, "refiner_checkpoint_info", None) is not None:
        raise ValueError(SECOND)
    if getattr(p, "enable_hr", False):
        partly = bool(p.truncate_x or p.truncate_y)
    else:
        width, height = p.init_images[0].size
        partly = bool(p.paste_to) or (p.resize_mode in (1, 2) and abs(width * p.height - height * p.width) > max(width, height))
    if partly:
        raise ValueError(PART)


def _convolutions(part: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in part.modules() if isinstance(layer, nn.Conv2d))


def _axes(layer: nn.Conv2d) -> Around:
    """For both directions the layer's own mode is used; for one alone an extension brings a function, and modes that stay when that is gone."""
    if layer.padding_mode == "circular":
        return Around(True, True)
    if idle(layer, "_conv_forward"):
        return NOWHERE
    modes = vars(layer)
    return Around(modes.get("padding_modeY") == "circular", modes.get("padding_modeX") == "circular")


@contextmanager
def with_borders(part: nn.Module) -> Iterator[None]:
    """Within the block, the layers of a network end at its input's border; afterwards they go round it as before."""
    layers = [layer for layer in _convolutions(part) if _axes(layer) != NOWHERE]
    before = [(layer, layer.padding_mode, vars(layer).get("_conv_forward")) for layer in layers]
    try:
        for layer in layers:
            layer.padding_mode = "zeros"
            vars(layer).pop("_conv_forward", None)
        yield
    finally:
        for layer, mode, forward in before:
            layer.padding_mode = mode
            if forward is not None:
                vars(layer)["_conv_forward"] = forward


@contextmanager
def views_with_borders(around: Iterable[bool]) -> Iterator[Callable[[Condition], Condition]]:
    """How the views of seamless pictures go through the loaded checkpoint: what to put around the engine's conditioning, called before every call.

    Within the block the layers are as the last call needed them; afterwards as they were.
    """
    if not any(around):
        yield lambda inner: inner
        return
    with ExitStack() as stack:
        windows: list[bool] = [False]

        def see(batch: ViewBatch) -> None:
            if (batch.grid is None) != windows[0]:
                windows[0] = batch.grid is None
                stack.close()
                if windows[0]:
                    stack.enter_context(with_borders(host().unet(shared.sd_model)))

        def around_views(inner: Condition) -> Condition:
            def condition(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
                see(batch)
                return inner(extra, batch)

            return condition

        yield around_views
