"""The units of sd-webui-controlnet, each with what it needs to be shown a view.

Source: sd-webui-controlnet 1.1.455, `scripts/hook.py`: `UnetHook.hook` and `ControlParams`; `scripts/ipadapter/plugable_ipadapter.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.hints import is_drawing, resized_hint, view_hints
from apt_ext.core.types import Size
from apt_ext.webui.model import FACTOR

__all__ = ["HINTS", "REFERENCE", "AttentionUnit", "Encode", "Show", "Unit", "shown_cut", "shown_whole"]

REFERENCE = "AttentionInjection"

# What a unit's hint is kept in. The first comes first: setting it empties the others.
HINTS = ("hint_cond", "hr_hint_cond", "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack", "effective_region_mask")

Show = Callable[[ViewBatch], None]
Encode = Callable[..., Tensor]  # (hint, mask=...) -> its latent


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


@dataclass(frozen=True)
class AttentionUnit:
    """An IP-Adapter of the present job. It keeps what it has made of its picture, for as many rows as the first call had, and calls differ here.

    Attributes:
        model: the extension's.
    """

    model: Any

    @contextmanager
    def kept(self) -> Iterator[None]:
        """After the block, nothing made for a phase's calls is left for the next pass."""
        try:
            yield
        finally:
            self.model.reset()


def shown_cut(unit: Unit, size: Size, encode: Encode, inpainting: bool) -> Show:
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
        return None if value is None else batch.spread(batch.gather(value))

    def show(batch: ViewBatch) -> None:
        seen = view_hints(hint, batch, FACTOR, drawing)
        # A single view's hint is laid over each row by the extension itself.
        unit.give(seen if len(seen) == 1 else batch.spread(seen), rows(latent, batch), rows(hijack, batch))
        if region is not None:
            unit.param.effective_region_mask = rows(region, batch)

    return show


def shown_whole(unit: Unit, size: Size, encode: Encode) -> Show:
    """What says how the picture looks and not where (reference, shuffle) is shown whole to every view, about as large as a view."""
    made: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def show(batch: ViewBatch) -> None:
        view = batch.view_size
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
