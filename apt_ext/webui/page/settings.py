"""The settings page: the controls' defaults, and the native size of each model family."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from apt_ext.webui.model import FAMILIES, window_option
from apt_ext.webui.page.controls import CONTROLS, Control, defaults

__all__ = ["add_settings", "default_values"]

SECTION = ("apt", "APT")


def _default_option(control: Control) -> Any:
    label = f"Default: {control.label}"
    if control.choices and not control.free:
        return shared.OptionInfo(control.default, label, gr.Radio, {"choices": list(control.choices)}, section=SECTION)
    if isinstance(control.default, (str, bool)):
        return shared.OptionInfo(control.default, label, section=SECTION)
    limits = {"minimum": control.least, "maximum": control.slider, "step": control.step}
    return shared.OptionInfo(control.default, label, gr.Slider, limits, section=SECTION)


def add_settings() -> None:
    """Register the page with the host."""
    for family, known in FAMILIES.items():
        limits = {"minimum": 256, "maximum": 2048, "step": 64}
        info = shared.OptionInfo(known.side, f"Native size, {known.label}", gr.Slider, limits, section=SECTION, infotext=f"APT window {family}")
        shared.opts.add_option(window_option(family), info.info("pixels; what the model was trained at: how large it composes, and its windows"))
    for control in CONTROLS:
        shared.opts.add_option(f"apt_default_{control.name}", _default_option(control).info("on the page after Reload UI, in the API at once"))


def default_values() -> dict[str, Any]:
    """Every control's default, as the settings page has it."""
    return {name: getattr(shared.opts, f"apt_default_{name}", value) for name, value in defaults().items()}
