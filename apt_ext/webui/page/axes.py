"""Axes for the host's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from modules import processing, scripts

from apt_ext.options import PRESETS
from apt_ext.webui.latents.upscalers import choices, host_name
from apt_ext.webui.page.controls import CONTROLS, Control
from apt_ext.webui.page.request import preset_host_values

__all__ = ["add_axes", "overrides_of"]

PREFIX = "apt_axis_"


def overrides_of(p: Any) -> dict[str, Any]:
    """What the plot has set on a processing object: option name -> value, and "enabled"."""
    return {name.removeprefix(PREFIX): value for name, value in p.__dict__.items() if name.startswith(PREFIX)}


def _switch(text: str) -> Any:
    """True or False; another text stays one, and is refused with the job."""
    return {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}.get(str(text).strip().lower(), text)


def _apply_upscaler(p: Any, value: Any, values: Any) -> None:
    """An upscaler, in a hires pass by the host's field, where it decides; a name that does not exist is refused with the job."""
    setattr(p, f"{PREFIX}upscaler", value)
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img):
        with suppress(ValueError):
            p.hr_upscaler = host_name(value)


def _apply_preset(p: Any, value: Any, values: Any) -> None:
    """A preset with what it wants of the host's own fields, as on the page; a name that does not exist is refused with the job."""
    setattr(p, f"{PREFIX}preset", value)
    try:
        wanted = preset_host_values(value)
    except ValueError:
        return
    p.denoising_strength = wanted["denoising"]
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img):
        p.hr_second_pass_steps, p.hr_upscaler = wanted["hires_steps"], host_name(wanted["upscaler"])
    else:
        p.steps = wanted["steps"]


def add_axes() -> None:
    """Add the axes to the plot, once; a page reload calls this again."""
    module = next((data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"), None)
    if module is None or any(option.label.startswith("[APT]") for option in module.axis_options):
        return

    def axis(label: str, kind: Any, apply: Any, choices: Any = None) -> Any:
        return module.AxisOption(f"[APT] {label}", kind, apply, choices=choices)

    switches = ["True", "False"]
    of_controls = {"preset": _apply_preset, "upscaler": _apply_upscaler}
    axes = [axis("On", _switch, _setter("enabled"), lambda: switches)]
    for control in CONTROLS:
        if not control.infotext and control.name != "preset":
            continue  # it does not change the picture
        kind, offered = _kind(control), list(PRESETS if control.name == "preset" else control.choices)
        if len(offered) == 1:
            offered = []  # the plot takes nothing but what it offers; a window's size is typed
        listed = choices if control.name == "upscaler" else (lambda offered=offered: offered) if offered else (lambda: switches) if kind is _switch else None
        axes.append(axis(control.label, kind, of_controls.get(control.name) or _setter(control.name), listed))
    module.axis_options.extend(axes)


def _kind(control: Control) -> Any:
    """How the plot reads a value; it knows ranges of numbers."""
    if control.choices:
        return str
    return _switch if isinstance(control.default, bool) else type(control.default)


def _setter(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, PREFIX + name, value)

    return apply
