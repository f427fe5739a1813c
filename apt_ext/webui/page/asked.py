"""What the panel is asked: the page's fields as the page or a program sends them, read into one form and kept within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Asked", "read"]

AUTOMATIC = "Automatic"  # the host's word; Forge Classic's page has no such field, its samplers bring their schedules
MOST_PIXELS, MOST_STEPS, MOST_PHASES, MOST_SHIFT = 16384, 1000, 64, 1000


class Asked(NamedTuple):
    """The fields of one tab.

    Attributes:
        img2img: which tab. `first`, `target`, `given`: (width, height) in pixels of the first pass, of what is asked for, and of img2img's picture.
        cut: whether the target may have another aspect than the first pass. `resize_mode`: img2img's, 0 to 3.
        steps, hires_steps, denoising, sampler, scheduler: as the host's fields have them. `upscaler`: of the host's field in a hires pass.
        checkpoint: the chosen one, by the host's name for it; None where nobody says.
        shift: of the pass's noise levels, where the host has a field for it (Forge Neo, under another name for Flux); None leaves the last one.
        settings: APT's own controls, by name.
    """

    img2img: bool
    first: tuple[int, int]
    target: tuple[int, int]
    given: tuple[int, int]
    cut: bool
    resize_mode: int
    steps: int
    hires_steps: int
    denoising: float
    sampler: str
    scheduler: str
    upscaler: str | None
    checkpoint: str | None
    shift: float | None
    settings: dict[str, Any]


def read(raw: Any) -> Asked:
    """A request's content.

    Raises:
        ValueError: in one sentence, for a field that is missing or cannot be used, and for a plan that would keep the server busy.
    """
    if not isinstance(raw, Mapping):
        raise ValueError('a plan is asked for with a JSON object such as {"img2img": false, "first": [512, 512], "target": [1024, 1024], ...}')
    img2img = raw.get("img2img", False)
    if not isinstance(img2img, bool):
        raise ValueError(f"img2img {img2img!r} is neither true nor false")
    settings = raw.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings {_short(settings)} are no JSON object of setting names and values")
    ratios = str(settings.get("phases", "")).count(",")
    if ratios > MOST_PHASES:
        raise ValueError(f"{ratios + 1} phases cannot be planned; use up to {MOST_PHASES}")
    size = (1, 1)
    return Asked(
        img2img=img2img,
        first=size if img2img else _size(raw, "first"),
        target=_size(raw, "target"),
        given=_size(raw, "given") if img2img else size,
        cut=bool(raw.get("cut")),
        resize_mode=int(_number(raw, "resize_mode", "Resize mode", 0, 3, whole=True)) if img2img else 0,
        steps=int(_number(raw, "steps", "Sampling steps", 1, MOST_STEPS, whole=True)),
        hires_steps=0 if img2img else int(_number(raw, "hires_steps", "Hires steps", 0, MOST_STEPS, whole=True)),
        denoising=_number(raw, "denoising", "Denoising strength", 0, 1),
        sampler=_text(raw, "sampler"),
        scheduler=AUTOMATIC if _given(raw, "scheduler") is None else _text(raw, "scheduler"),
        upscaler=None if raw.get("upscaler") is None else _text(raw, "upscaler"),
        checkpoint=None if raw.get("checkpoint") is None else _text(raw, "checkpoint"),
        shift=None if raw.get("shift") is None else _number(raw, "shift", "Shift", 0, MOST_SHIFT),
        settings=dict(settings),
    )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _given(raw: Mapping[str, Any], name: str) -> Any:
    if name not in raw:
        raise ValueError(f"the plan needs {name!r}, which is missing")
    return raw[name]


def _number(raw: Mapping[str, Any], name: str, label: str, least: float, most: float, whole: bool = False) -> float:
    value = _given(raw, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{label} {_short(value)} is no number; use one from {least:g} to {most:g}")
    if not least <= value <= most or (whole and value != int(value)):
        raise ValueError(f"{label} {_short(value)} cannot be planned; use {'a whole number from ' if whole else ''}{least:g} to {most:g}")
    return float(value)


def _size(raw: Mapping[str, Any], name: str) -> tuple[int, int]:
    value = _given(raw, name)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name} {_short(value)} is no size; use [width, height] in pixels")
    sides = dict(zip(("width", "height"), value, strict=True))
    width, height = (_number(sides, side, f"{name} {side}", 1, MOST_PIXELS, whole=True) for side in sides)
    return int(width), int(height)


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = _given(raw, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} {_short(value)} is no name")
    return value
