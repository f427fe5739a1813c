"""The ControlNet of Forge and its kin: part of the host, a chain of units linked to its UNet.

The host asks the chain once per model call, with the whole picture. During a phase a stand-in is asked that answers nothing, and the chain is asked
for each call of views, with the hints of those views.

Source: Forge at dfdcbab6, `backend/patcher/controlnet.py`; that a hint has to be cut for each tile is also how its own MultiDiffusion does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.hints import is_drawing, resized_hint, view_hints
from apt_ext.core.types import Size
from apt_ext.webui.model import FACTOR

__all__ = ["ForgeControl", "Unheard", "control_of", "options_of_call", "options_of_views"]

OPTIONS = "transformer_options"
CARRIED = (OPTIONS, "control", "control_model")  # what is no conditioning of the model's
# What a unit keeps of the picture that it was last asked about; `control_input` is the T2I adapter's.
KEPT = ("cond_hint", "control_input", "advanced_mask_weighting", "advanced_frame_weighting", OPTIONS)
# By which reForge's units of later families say that their hint is no picture: it goes through a VAE, or has more beside it.
OF_LATENTS = ("latent_format", "extra_concat_orig")


class Unheard:
    """Stands for a chain of units in the host's UNet: memory, models and their beginning and end are the chain's, and its answer is left to the views."""

    previous_controlnet = None

    def __init__(self, head: Any):
        self._head = head
        self._told = OPTIONS in signature(head.get_control).parameters  # reForge's are, the others look at themselves
        self.transformer_options: Any = {}

    def get_control(self, *args: Any) -> None:
        """The whole picture's; nobody needs it."""

    def control_for(self, x: Tensor, sigma: Tensor, c: Mapping[str, Any], kinds: int) -> Any:
        """What the chain says of a call's views; it may change the arguments that it is given."""
        for unit in _chain(self._head):
            unit.transformer_options = c[OPTIONS]
        return self._head.get_control(x, sigma, dict(c), kinds, *((c[OPTIONS],) if self._told else ()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)


def _chain(head: Any) -> Iterator[Any]:
    while head is not None:
        yield head
        head = head.previous_controlnet


def options_of_views(options: Mapping[str, Any], batch: ViewBatch) -> dict[str, Any]:
    """The host's options of a call's rows -> those of the rows' views, in the order of `ViewBatch.gather`."""
    count = batch.count
    made = dict(options)
    for name in ("sigmas", "cond_mark"):
        if isinstance(options.get(name), Tensor):
            made[name] = options[name].repeat_interleave(count, 0)
    for name in ("cond_indices", "uncond_indices"):
        if name in options:
            made[name] = [row * count + view for row in options[name] for view in range(count)]
    return made


def options_of_call(unet: Any, levels: Tensor) -> dict[str, Any]:
    """The host's options of a call with the prompt alone, at (N,) noise levels."""
    options = dict(unet.model_options.get(OPTIONS, {}))
    mark, indices = torch.zeros_like(levels), [*range(len(levels))]
    return options | {"cond_or_uncond": [0], "sigmas": levels, "cond_mark": mark, "cond_indices": indices, "uncond_indices": []}


Show = Callable[[ViewBatch], None]


def _show(unit: Any, size: Size) -> Show:
    """How a unit is shown what a batch of views of a latent of this size sees."""
    original: Tensor = unit.cond_hint_original
    # One hint, or one for each picture of the batch: then a row for each sample, the kinds of prompt one after the other.
    drawing = is_drawing(original)
    hint = resized_hint(original.float(), (size.rows * FACTOR, size.columns * FACTOR), drawing)
    mask = getattr(unit, "advanced_mask_weighting", None)
    mask = None if mask is None else functional.interpolate(mask.float(), size, mode="bilinear")
    frames = getattr(unit, "advanced_frame_weighting", None)

    def rows(value: Tensor, batch: ViewBatch, views: Callable[[Tensor], Tensor]) -> Tensor:
        """Of (1 or pictures, ...): for each sample, its picture's views."""
        each = [views(one[None]) for one in value]
        return batch.spread(each[0]) if len(each) == 1 else _of_samples(each, batch)

    def show(batch: ViewBatch) -> None:
        if unit.global_average_pooling:  # how the picture looks, not where: shown whole to every view
            pixels = (batch.view_size.rows * FACTOR, batch.view_size.columns * FACTOR)
            shown = rows(hint, batch, lambda one: resized_hint(one, pixels, drawing).repeat(batch.count, 1, 1, 1))
        else:
            shown = rows(hint, batch, lambda one: view_hints(one, batch, FACTOR, drawing))
        if getattr(unit, "channels_in", None) == 1 and shown.shape[1] > 1:  # a T2I adapter of lines
            shown = shown.mean(1, keepdim=True)
        if hasattr(unit, "control_input"):
            unit.control_input = None
        unit.cond_hint = shown.to(_dtype(unit, shown))
        if mask is not None:
            unit.advanced_mask_weighting = rows(mask, batch, batch.gather)
        if frames is not None:
            unit.advanced_frame_weighting = [weight for weight in frames for _ in range(batch.count)]

    return show


def _of_samples(each: list[Tensor], batch: ViewBatch) -> Tensor:
    return torch.cat([each[sample % len(each)] for sample in range(batch.samples)])


def _dtype(unit: Any, hint: Tensor) -> Any:
    """That the unit's model wants its hint in."""
    own = getattr(unit, "manual_cast_dtype", None) or getattr(getattr(unit, "control_model", None), "dtype", None)
    return own or hint.dtype


class ForgeControl:
    """See `hosts.host.Control`."""

    def __init__(self, units: tuple[Any, ...] = ()):
        self._units = units
        self._shows: list[Show] = []

    @property
    def active(self) -> bool:
        """See `Control`."""
        return bool(self._units)

    def most(self, batch: int) -> int:
        """Its units take any number of views."""
        return batch

    @contextmanager
    def phase(self, size: Size) -> Iterator[None]:
        """See `Control`."""
        with ExitStack() as stack:
            for unit in self._units:
                stack.enter_context(_kept(unit))
            try:
                self._shows = [_show(unit, size) for unit in self._units]
                yield
            finally:
                self._shows = []

    def prompts(self, c: Any, uc: Any) -> tuple[Any, Any]:
        """The host itself tells its units which rows are the prompt's."""
        return c, uc

    def condition(self, inner: Condition) -> Condition:
        """See `Control`; the host's own options of a call follow its rows into their views."""

        def of_views(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            for show in self._shows:
                show(batch)
            cut = dict(inner({name: value for name, value in extra.items() if name not in CARRIED}, batch))
            cut |= {name: extra[name] for name in CARRIED if name in extra}
            if OPTIONS in extra:
                cut[OPTIONS] = options_of_views(extra[OPTIONS], batch)
            return cut

        return of_views


@contextmanager
def _kept(unit: Any) -> Iterator[None]:
    """After the block, a unit has what it had before."""
    before = {name: value for name, value in vars(unit).items() if name in KEPT}
    try:
        yield
    finally:
        for name in KEPT:
            vars(unit).pop(name, None)
        vars(unit).update(before)


def control_of(unet: Any) -> ForgeControl:
    """The units that are linked to a UNet.

    Raises:
        ValueError: for one that cannot be shown to windows.
    """
    units = tuple(_chain(unet.controlnet_linked_list))
    for unit in units:
        hint = unit.cond_hint_original
        of_latents = any(vars(unit).get(name) for name in OF_LATENTS)
        if of_latents or not isinstance(hint, Tensor) or hint.ndim != 4:
            raise ValueError(f"a ControlNet unit of the kind {type(unit).__name__} cannot be cut to windows; turn that unit off")
    return ForgeControl(units)
