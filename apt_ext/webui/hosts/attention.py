"""Other extensions' hooks on the UNet's attention, which take every model call for one of the whole picture: given what they go by, or refused.

NegPiP and Regional Prompter tell prompts from negative prompts by the number of a call's rows or by counting calls, and Regional Prompter lays its
regions over whatever a call shows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

from torch import Tensor, nn

from apt_ext.webui.hosts.detect import host
from apt_ext.webui.hosts.extensions import HYPERTILE_LAYER, idle
from apt_ext.webui.hosts.views import View
from apt_ext.webui.model import FACTOR

__all__ = ["Hooks", "check_hooks", "hooks_of"]

SELF_ATTENTION = "another extension reads the self-attention of the whole picture (Self-Attention Guidance, perhaps), which no window has; turn it or APT off"
REGIONS_FROM_ATTENTION = (
    "Regional Prompter's mode {!r} finds its regions in the attention of the whole picture, which no window has; use its modes Matrix or Mask, or turn it off"
)
REGIONS_AND_TILING = "Regional Prompter's regions do not go round the border of a seamless picture; turn it or Tiling off"
REGIONS_AND_WORDS = "prompts of Regional Prompter cannot be told apart word by word; set words per window to 0, or turn Regional Prompter off"

# ControlNet's attention for IP-Adapter goes by each row's own mark; what it keeps for a number of rows, controlnet.py lets it forget.
BY_ROWS = ("attn_forward_hacked",)
LAST = 0.999  # the extension's own: a region that ends there ends at the border
EMPTY = 0.5  # where a region begins and ends that a view does not show: not at 1, where the extension makes up for rounding

Counters = tuple[MutableMapping[str, Any], tuple[str, ...]]


def _attention(unet: nn.Module, name: str) -> Iterator[nn.Module]:
    return (module for path, module in unet.named_modules() if path.rpartition(".")[2] == name)


def _foreign(layer: nn.Module) -> bool:
    """Whether an extension has put a forward of its own onto this very layer; the host's optimisations change the class."""
    found: Any = vars(layer).get("forward")
    while hasattr(found, "func"):
        found = found.func
    return not idle(layer) and getattr(found, "__name__", "") not in BY_ROWS


def _script(p: Any, title: str) -> Any:
    found = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return next((script for script in found if script.title() == title), None)


def _regional(p: Any) -> Any:
    script = _script(p, "Regional Prompter")
    return script if getattr(script, "active", False) else None


def check_hooks(p: Any, model: Any, words: bool, around: bool) -> None:
    """Make sure that what hangs on the model's attention can be given what it goes by.

    Args:
        words: whether windows get prompts of their own. `around`: whether the picture is seamless.

    Raises:
        ValueError: where it needs the whole picture.
    """
    unet = host().unet(model)
    if any(_foreign(layer) and HYPERTILE_LAYER not in vars(layer) for layer in _attention(unet, "attn1")):
        raise ValueError(SELF_ATTENTION)
    script = _regional(p)
    mode = str(getattr(script, "mode", ""))
    if "Pro" in mode or getattr(script, "diff", None):
        raise ValueError(REGIONS_FROM_ATTENTION.format(mode))
    if script is not None and around:
        raise ValueError(REGIONS_AND_TILING)
    if script is not None and words:
        raise ValueError(REGIONS_AND_WORDS)


class _Regions:
    """Regional Prompter's regions, as a view shows them.

    Args:
        script: the extension's, with `aratios` (an outer list of bands with cells, each from `st` to `ed` of 0 to 1), masks over the whole picture, and
            `h` and `w`, the size in pixels that it believes a call to show.
    """

    MASKS = ("regmasks", "regbase", "ransors", "ranbase")

    def __init__(self, script: Any):
        self._script = script

    @contextmanager
    def seen_by(self, view: View) -> Iterator[None]:
        """Within the block, the regions are those of a view; afterwards what they were."""
        values = vars(self._script)
        shown = {"h": len(view.rows) * FACTOR, "w": len(view.columns) * FACTOR, "hr": False}
        shown |= {"aratios": self._bands(view)} | {name: _cut(values[name], view) for name in self.MASKS if name in values}
        before = {name: values[name] for name in shown if name in values}
        values.update(shown)
        try:
            yield
        finally:
            values.update(before)

    def _bands(self, view: View) -> list[Any]:
        outer_along_rows = "Ver" not in self._script.mode
        bands = [self._moved(band, view, outer_along_rows) for band in getattr(self._script, "aratios", ())]
        for band in bands:
            band.cols = [self._moved(cell, view, not outer_along_rows) for cell in band.cols]
        return bands

    def _moved(self, part: Any, view: View, along_rows: bool) -> Any:
        moved = copy(part)
        # What lies beyond the border belongs to the region there.
        moved.st = view.within(along_rows, part.st) if part.st > 0 else 0.0
        moved.ed = view.within(along_rows, part.ed) if part.ed < LAST else 1.0
        if moved.ed <= moved.st:
            moved.st = moved.ed = EMPTY
        return moved


def _cut(value: Any, view: View) -> Any:
    if isinstance(value, (list, tuple)):
        return [_cut(one, view) for one in value]
    return view.cut(value) if isinstance(value, Tensor) else value


class Hooks:
    """What hangs on the attention of a job's UNet; without anything, nothing of this does anything.

    Args:
        alone: whether a model call may hold one view only, for the hooks count its rows.
        counters: names of numbers that they count calls with, and where these are.
        regions: Regional Prompter's, or None.
    """

    def __init__(self, alone: bool = False, counters: Sequence[Counters] = (), regions: _Regions | None = None):
        self._alone, self._counters, self._regions = alone, counters, regions
        self._noted: list[dict[str, Any]] = []

    def most(self, batch: int) -> int:
        """The views that a model call may hold, of those wanted."""
        return 1 if self._alone else batch

    def begin(self) -> None:
        """The host calls its model, once; however many calls that makes, the hooks have to count one."""
        self._noted = [{name: values[name] for name in names if name in values} for values, names in self._counters]

    @contextmanager
    def around(self, views: Sequence[View]) -> Iterator[None]:
        """Within the block, the model is called with these views."""
        for (values, _), noted in zip(self._counters, self._noted, strict=False):
            values.update(noted)
        with ExitStack() as stack:
            if self._regions is not None:
                stack.enter_context(self._regions.seen_by(views[0]))
            yield


def hooks_of(p: Any, model: Any) -> Hooks:
    """The hooks that are on the model, for the pass that is about to begin."""
    unet = host().unet(model)
    counters: list[Counters] = []
    negpip, regional = _script(p, "NegPiP"), _regional(p)
    if negpip is not None:
        module = getattr(getattr(type(negpip), "process_batch", None), "__globals__", {})
        counters += [(module, ("count", "pn")), (vars(negpip), ("latenti",))]
    if regional is not None:
        counters.append((vars(regional), ("count", "pn", "condi")))
        regioner = getattr(sys.modules.get("scripts.latent"), "regioner", None)  # which LoRA is a region's, by counting calls
        if regioner is not None:
            counters.append((vars(regioner), ("u_count",)))
    hooked = any(_foreign(layer) for layer in _attention(unet, "attn2"))
    regions = _Regions(regional) if regional is not None and hooked else None
    return Hooks(hooked or regional is not None, counters, regions)
