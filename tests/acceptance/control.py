"""What `test_control.py` asks of ControlNet's units, and the rows of docs/control.md."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["BARS", "KINDS", "UNITS", "Bar", "Field"]

KINDS = ("hires", "img2img")
MODES = {
    "My prompt is more important": 3,
    "ControlNet is more important": 1,
}  # control mode -> units alike, for soft weights are weak and a picture has 256 levels


class Bar(NamedTuple):
    """A unit with every field at its default: how, how large, whether square or 3:2."""

    unit: str
    kind: str
    scale: int
    square: bool

    @property
    def what(self) -> str:
        return f"{self.kind} {self.scale}x, {self.unit}, {'square' if self.square else '3:2'}"


class Field(NamedTuple):
    """A unit with some field changed, as often as makes its effect as large as that of one left alone."""

    unit: str
    kind: str
    name: str
    given: dict[str, Any]
    times: int = 1

    @property
    def what(self) -> str:
        return f"{self.kind} 2x, {self.unit}, {self.name}"


BARS = [Bar(unit, kind, scale, square) for unit in ("ControlNet", "T2I-Adapter") for kind in KINDS for scale in (2, 4) for square in (True, False)]

UNITS = [
    *(
        Field(unit, kind, f"*{mode}*", {"control_mode": mode}, times)
        for unit in ("ControlNet", "T2I-Adapter")
        for kind in KINDS
        for mode, times in MODES.items()
    ),
    *(Field("ControlNet", kind, "weight 0.5", {"weight": 0.5}) for kind in KINDS),
    *(Field("ControlNet", kind, "low VRAM", {"low_vram": True}) for kind in KINDS),
]
