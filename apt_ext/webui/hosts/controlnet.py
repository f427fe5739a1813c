"""The units of sd-webui-controlnet, shown to each model call as its views need them.

That extension hooks the UNet for the length of a job and lays each unit's hint over whatever the UNet is given, be it the whole picture or
one window of it. Here the units of the present job get, before each call, the hints of that call's views; after each phase they have their
own back. Nothing else of the extension is touched.

Source: sd-webui-controlnet 1.1.455, `scripts/hook.py`: `UnetHook.hook` and `ControlParams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

from modules import errors, shared
from torch import Tensor

from apt_ext.core.conditioning import Condition, ViewBatch
from apt_ext.core.types import Size
from apt_ext.webui.hosts.controlnet_units import HINTS, REFERENCE, AttentionUnit, Show, Unit, shown_cut, shown_whole

__all__ = ["Control", "control_ended_on_failure", "control_of", "hook_again", "without_control"]

CUT = ("ControlNet", "T2I_Adapter", "ControlLoRA", "InstantID", "ControlNetUnion", "Controlllite")  # kinds whose hint lies over the picture
WHOLE = ("ReVision", "T2I_StyleAdapter")  # kinds without a place in the picture: every window sees them as they are
BY_ATTENTION = "IPAdapter"
BY_LAYERS = ("Controlllite", BY_ATTENTION)  # kinds that the extension puts into layers of the UNet as a job begins, and then knows no more how
SEPARATE = "Each ControlNet unit for each image in a batch"

NEEDED = (*HINTS[:-1], "control_model", "control_model_type", "preprocessor", "global_average_pooling", "cfg_injection")
UNKNOWN = "this version of the ControlNet extension is not known to APT ({}); use version 1.1.455 of sd-webui-controlnet, or turn its units off"


class Control:
    """The units of a pass; without any, nothing of this does anything.

    Args:
        p: the processing object. `network`: the extension's hook. `units`: those that have to see views.
        alone: whether a model call may hold one view only, for the extension counts its rows.
    """

    def __init__(self, p: Any = None, network: Any = None, units: tuple[Unit | AttentionUnit, ...] = (), alone: bool = False):
        self._p, self._network, self._units, self._alone = p, network, units, alone
        self._shows: list[Show] = []

    @property
    def active(self) -> bool:
        """Whether there are any that lie over the picture."""
        return any(isinstance(unit, Unit) for unit in self._units)

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

    def _show(self, unit: Unit | AttentionUnit, size: Size) -> Show:
        if isinstance(unit, AttentionUnit):
            return lambda _: unit.model.reset()
        encode = partial(self._network.call_vae_using_process, self._p)
        if unit.kind == REFERENCE or unit.param.global_average_pooling:
            return shown_whole(unit, size, encode)
        return shown_cut(unit, size, encode, getattr(self._network.model, "in_channels", 4) == 9)

    def prompts(self, c: Any, uc: Any) -> tuple[Any, Any]:
        """A pass's prompts and negative prompts, told apart for IP-Adapters; neither is written to.

        The extension marks both, but in a hires pass, whose prompts the host makes later. There by itself it uses what it made in the first
        pass for as many rows; windows have other numbers of rows, so that has to be made anew, and needs the marks.
        """
        if not any(isinstance(unit, AttentionUnit) for unit in self._units):
            return c, uc
        mark = getattr(type(self._network).hook, "__globals__", {}).get("mark_prompt_context")
        if mark is None:
            raise ValueError(UNKNOWN.format("it has no mark_prompt_context"))
        return mark(_own_lists(c), positive=True), mark(_own_lists(uc), positive=False)

    def condition(self, inner: Condition) -> Condition:
        """`inner`, with every unit shown what the call's views see."""

        def with_hints(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            for show in self._shows:
                show(batch)
            return inner(extra, batch)

        return with_hints


def _own_lists(prompts: Any) -> Any:
    """The host's conditioning, with lists and their holders of its own: the host keeps the given ones for the next job."""
    if isinstance(prompts, list):
        return [_own_lists(one) for one in prompts]
    own = copy(prompts)
    for name in ("batch", "schedules"):
        if hasattr(own, name):
            setattr(own, name, _own_lists(getattr(own, name)))
    return own


def _scripts(p: Any) -> list[Any]:
    """ControlNet's scripts among those of a job."""
    found = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return [script for script in found if str(script.title()).lower() == "controlnet"]


def _kind(param: Any) -> str:
    return str(getattr(param.control_model_type, "name", param.control_model_type))


def _unit(p: Any, param: Any) -> Unit | AttentionUnit | None:
    """One of the extension's units, or None where it needs no help.

    Raises:
        ValueError: for one that cannot be shown to windows.
    """
    missing = [name for name in NEEDED if not hasattr(param, name)]
    if missing:
        raise ValueError(UNKNOWN.format(f"its units have no {missing[0]}"))
    kind = _kind(param)
    if kind in (*WHOLE, BY_ATTENTION) and getattr(param, "effective_region_mask", None) is not None:
        raise ValueError("a ControlNet unit that acts by attention (IP-Adapter) cannot be kept to a region window by window; take its region mask away")
    if kind in WHOLE:
        return None
    if kind == BY_ATTENTION:
        if not hasattr(param.control_model, "reset"):
            raise ValueError(UNKNOWN.format("its IP-Adapters have no reset"))
        return AttentionUnit(param.control_model)
    if kind != REFERENCE and kind not in CUT:
        raise ValueError(f"ControlNet units of the type {kind!r} cannot be cut to windows; turn that unit off")
    hires = bool(p.is_hr_pass) and isinstance(param.hr_hint_cond, Tensor)
    hint = param.hr_hint_cond if hires else param.hint_cond
    model = getattr(param.control_model, "control_model", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4 or len(hint) != 1 or type(model).__name__ == "SparseCtrl":
        raise ValueError("ControlNet units with several pictures for one (batches of frames, AnimateDiff) cannot be cut to windows; turn that unit off")
    return Unit(param, kind, hint, hires)


def _for_guidance(unit: Unit | AttentionUnit) -> bool:
    """Whether the extension repeats what a unit has made for one row as often as a call has rows."""
    return isinstance(unit, Unit) and unit.kind == "T2I_Adapter" and bool(unit.param.cfg_injection)


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
        counted = separate == SEPARATE or aligned or any(_for_guidance(unit) for unit in units)
        return Control(p, network, units, bool(counted))
    return Control()


def hook_again(p: Any) -> None:
    """Have the units of a job on the loaded checkpoint's UNet, where the refiner's has taken the place of the one that they were put on."""
    unet = shared.sd_model.model.diffusion_model
    for script in _scripts(p):
        network = getattr(script, "latest_network", None)
        if network is None or network.model is unet:
            continue
        params, (separate, aligned) = network.control_params, script.ui_batch_option_state
        network.restore()
        network.hook(unet, shared.sd_model, params, p, separate == SEPARATE, aligned)
        lost = {kind for param in params if (kind := _kind(param)) in BY_LAYERS}
        if lost:
            p.comment(f"APT: the refiner is a checkpoint of another kind, so ControlNet units of the type {', '.join(sorted(lost))} acted before it alone.")


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
