"""The units of sd-webui-controlnet, shown to each model call as its views need them.

That extension hooks the UNet for the length of a job and lays each unit's hint over whatever the UNet is given, be it the whole picture or
one window of it. Here the units of the present job get, before each call, the hints of that call's views; after each phase they have their
own back. Nothing else of the extension is touched.

Source: sd-webui-controlnet 1.1.455, `scripts/hook.py`: `UnetHook.hook` and `ControlParams`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from modules import errors
from torch import Tensor
from torch.nn import functional

from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.hints import is_drawing, resized_hint, view_hints
from apt_ext.core.types import Size
from apt_ext.webui.model import FACTOR

__all__ = ["Control", "control_ended_on_failure", "control_of", "without_control"]

CUT = ("ControlNet", "T2I_Adapter", "ControlLoRA", "InstantID", "ControlNetUnion", "Controlllite")  # kinds whose hint lies over the picture
WHOLE = ("IPAdapter", "ReVision", "T2I_StyleAdapter")  # kinds without a place in the picture: every window sees them as they are
REFERENCE = "AttentionInjection"
SEPARATE = "Each ControlNet unit for each image in a batch"

# What a unit's hint is kept in. The first comes first: setting it empties the others.
HINTS = ("hint_cond", "hr_hint_cond", "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack", "effective_region_mask")
NEEDED = (*HINTS[:-1], "control_model", "control_model_type", "preprocessor", "global_average_pooling", "cfg_injection")
UNKNOWN = "this version of the ControlNet extension is not known to APT ({}); use version 1.1.455 of sd-webui-controlnet, or turn its units off"

Show = Callable[[ViewBatch], None]
Encode = Callable[..., Tensor]  # (hint, mask=...) -> its latent


def _rows(views: Tensor, batch: ViewBatch) -> Tensor:
    """(views, C, H, W) -> a row for each view of each sample, in the order of `ViewBatch.gather`."""
    return views.repeat(batch.samples, 1, 1, 1)


def _view_size(batch: ViewBatch) -> tuple[int, int]:
    """(rows, columns) of a batch's views, in latent pixels."""
    if batch.grid is None:
        return batch.windows[0].height, batch.windows[0].width
    (dr, dc), (rows, columns) = batch.grid.dilation, batch.size
    return (rows + batch.grid.top + batch.grid.bottom) // dr, (columns + batch.grid.left + batch.grid.right) // dc


@dataclass(frozen=True)
class Unit:
    """One unit of the present job.

    Attributes:
        param: the extension's. `kind`: the name of its type. `hint`: (1, C, H, W) as the pass shows it. `hires`: whether in a hires pass.
    """

    param: Any
    kind: str
    hint: Tensor
    hires: bool

    @property
    def encoded(self) -> bool:
        """Whether the extension looks at the hint's latent."""
        name = str(self.param.preprocessor["name"])
        return self.kind == REFERENCE or "colorfix" in name or "inpaint_only" in name

    def give(self, hint: Tensor, latent: Tensor | None = None, hijack: Tensor | None = None) -> None:
        """Let the extension use a hint, and what it makes of it, as that of the pass under way."""
        self.param.hint_cond = hint
        if self.hires:
            self.param.hr_hint_cond = hint  # where both have one size, the extension knows itself in the hires pass
        self.param.used_hint_cond, self.param.used_hint_cond_latent, self.param.used_hint_inpaint_hijack = hint, latent, hijack
        self.forget(hint * 2 - 1)

    def forget(self, picture: Tensor | None) -> None:
        """Let the model forget what it has made of the hint before; ControlLLLite keeps a `picture` of its own, -1 to 1."""
        if self.kind == "T2I_Adapter":
            self.param.control_model.control = None
        if self.kind == "Controlllite":
            for module in self.param.control_model.modules.values():
                module.set_cond_image(picture)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """After the block, the unit has what it had before."""
        before = {name: getattr(self.param, name) for name in HINTS if hasattr(self.param, name)}
        picture = next(iter(self.param.control_model.modules.values())).cond_image if self.kind == "Controlllite" else None
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.param, name, value)
            self.forget(picture)


def _cut(unit: Unit, size: Size, encode: Encode, inpainting: bool) -> Show:
    """What lies over the picture is cut as the latent of this size is."""
    drawing = is_drawing(unit.hint)
    hint = resized_hint(unit.hint, (size.rows * FACTOR, size.columns * FACTOR), drawing)
    latent = encode(hint) if unit.encoded else None
    hijack = None
    if inpainting and hint.shape[1] == 4:
        # For an inpainting model's own channels: the mask, and the latent of what it leaves.
        mask = (hint[:, 3:4] > 0.5).to(hint.dtype)
        kept = encode(hint[:, :3], mask=mask)
        hijack = torch.cat([functional.max_pool2d(mask, FACTOR).to(kept), kept], 1)
    region = getattr(unit.param, "effective_region_mask", None)
    region = None if region is None else functional.interpolate(region, size, mode="bilinear")

    def rows(value: Tensor | None, batch: ViewBatch) -> Tensor | None:
        return None if value is None else _rows(batch.gather(value), batch)

    def show(batch: ViewBatch) -> None:
        seen = view_hints(hint, batch, FACTOR, drawing)
        # A single view's hint is laid over each row by the extension itself.
        unit.give(seen if len(seen) == 1 else _rows(seen, batch), rows(latent, batch), rows(hijack, batch))
        if region is not None:
            unit.param.effective_region_mask = rows(region, batch)

    return show


def _whole(unit: Unit, size: Size, encode: Encode) -> Show:
    """What says how the picture looks and not where (reference, shuffle) is shown whole to every view, about as large as a view."""
    made: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def show(batch: ViewBatch) -> None:
        view = _view_size(batch)
        if view not in made:
            rows, columns = view
            if unit.kind == REFERENCE:  # attention takes any shape, so a reference keeps its own
                scale = (rows * columns / (size.rows * size.columns)) ** 0.5
                rows, columns = (max(8, round(side * scale / 8) * 8) for side in size)
            hint = resized_hint(unit.hint, (rows * FACTOR, columns * FACTOR), is_drawing(unit.hint))
            made[view] = hint, encode(hint) if unit.encoded else None
        hint, latent = made[view]
        unit.give(hint, None if latent is None else latent.repeat(batch.samples * batch.count, 1, 1, 1))

    return show


class Control:
    """The units of a pass; without any, nothing of this does anything.

    Args:
        p: the processing object. `network`: the extension's hook. `units`: those that have to see views.
        alone: whether a model call may hold one view only, for the extension counts its rows.
    """

    def __init__(self, p: Any = None, network: Any = None, units: tuple[Unit, ...] = (), alone: bool = False):
        self._p, self._network, self._units, self._alone = p, network, units, alone
        self._shows: list[Show] = []

    @property
    def active(self) -> bool:
        """Whether there are any."""
        return bool(self._units)

    def most(self, batch: int) -> int:
        """The views that a model call may hold, of those wanted."""
        return 1 if self._alone else batch

    @contextmanager
    def phase(self, size: Size) -> Iterator[None]:
        """Within the block, the latent is of this size (rows, columns); afterwards every unit has its own hint back."""
        with ExitStack() as stack:
            for unit in self._units:
                stack.enter_context(unit.kept())
            try:
                self._shows = [self._show(unit, size) for unit in self._units]
                yield
            finally:
                self._shows = []

    def _show(self, unit: Unit, size: Size) -> Show:
        encode = partial(self._network.call_vae_using_process, self._p)
        if unit.kind == REFERENCE or unit.param.global_average_pooling:
            return _whole(unit, size, encode)
        return _cut(unit, size, encode, getattr(self._network.model, "in_channels", 4) == 9)

    def condition(self, inner: Condition) -> Condition:
        """`inner`, with every unit shown what the call's views see."""

        def with_hints(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            for show in self._shows:
                show(batch)
            return inner(extra, batch)

        return with_hints


def _scripts(p: Any) -> list[Any]:
    """ControlNet's scripts among those of a job."""
    found = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return [script for script in found if str(script.title()).lower() == "controlnet"]


def _unit(p: Any, param: Any) -> Unit | None:
    """One of the extension's units, or None where it needs no help.

    Raises:
        ValueError: for one that cannot be shown to windows.
    """
    missing = [name for name in NEEDED if not hasattr(param, name)]
    if missing:
        raise ValueError(UNKNOWN.format(f"its units have no {missing[0]}"))
    kind = str(getattr(param.control_model_type, "name", param.control_model_type))
    if kind in WHOLE:
        if getattr(param, "effective_region_mask", None) is not None:
            raise ValueError("a ControlNet unit that acts by attention (IP-Adapter) cannot be kept to a region window by window; take its region mask away")
        return None
    if kind != REFERENCE and kind not in CUT:
        raise ValueError(f"ControlNet units of the type {kind!r} cannot be cut to windows; turn that unit off")
    hires = bool(p.is_hr_pass) and isinstance(param.hr_hint_cond, Tensor)
    hint = param.hr_hint_cond if hires else param.hint_cond
    model = getattr(param.control_model, "control_model", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4 or len(hint) != 1 or type(model).__name__ == "SparseCtrl":
        raise ValueError("ControlNet units with several pictures for one (batches of frames, AnimateDiff) cannot be cut to windows; turn that unit off")
    return Unit(param, kind, hint, hires)


def control_of(p: Any) -> Control:
    """The units of sd-webui-controlnet that are on in a job, for the pass that is about to begin.

    Raises:
        ValueError: where they cannot be shown to windows; the message says what to turn off.
    """
    for script in _scripts(p):
        if not hasattr(script, "latest_network"):
            raise ValueError(UNKNOWN.format("it has no latest_network"))
        network = script.latest_network
        if network is None:
            continue
        if not hasattr(network, "control_params") or not hasattr(network, "call_vae_using_process"):
            raise ValueError(UNKNOWN.format("its hook has no control_params"))
        params = network.control_params or []
        units = tuple(unit for unit in (_unit(p, param) for param in params) if unit is not None)
        separate, aligned = getattr(script, "ui_batch_option_state", ("", False))
        counted = separate == SEPARATE or aligned or any(unit.kind == "T2I_Adapter" and unit.param.cfg_injection for unit in units)
        return Control(p, network, units, bool(counted))
    return Control()


@contextmanager
def without_control(p: Any) -> Iterator[None]:
    """Within the block, the units that lie over the picture are out of the model."""
    hooked = [(network, network.control_params) for script in _scripts(p) if (network := getattr(script, "latest_network", None)) is not None]
    try:
        for network, _ in hooked:
            network.control_params = []
        yield
    finally:
        for network, params in hooked:
            network.control_params = params


@contextmanager
def control_ended_on_failure(p: Any) -> Iterator[None]:
    """Where the block fails, let the extension end its part of the job.

    The host tells it of the end of those jobs alone that end well; its hook would stay on the UNet and act on every later picture.
    """
    try:
        yield
    except BaseException:
        for script in _scripts(p):
            if getattr(script, "latest_network", None) is not None:
                try:
                    script.postprocess(p, SimpleNamespace(images=[], extra_generation_params={}))
                except Exception:
                    errors.report("APT: ControlNet could not be taken off the model", exc_info=True)
        raise
