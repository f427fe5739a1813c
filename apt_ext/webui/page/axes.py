"""Axes for the host's X/Y/Z plot."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from modules import processing, scripts

from apt_ext.options import METHODS, PHASE_POLICIES, PRESETS
from apt_ext.webui.latents.upscalers import choices, host_name
from apt_ext.webui.page.request import preset_host_values

__all__ = ["add_axes", "overrides_of"]

PREFIX = "apt_axis_"


def overrides_of(p: Any) -> dict[str, Any]:
    """What the plot has set on a processing object: option name -> value, and "enabled"."""
    return {name.removeprefix(PREFIX): value for name, value in p.__dict__.items() if name.startswith(PREFIX)}


def _boolean(text: str) -> bool:
    return str(text).lower() in ("true", "on", "yes", "1")


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

    def axis(label: str, kind: Any, name: str, **more: Any) -> Any:
        def apply(p: Any, value: Any, values: Any) -> None:
            setattr(p, PREFIX + name, value)

        return module.AxisOption(f"[APT] {label}", kind, apply, **more)

    module.axis_options.extend(
        [
            axis("On", _boolean, "enabled", choices=lambda: ["True", "False"]),
            module.AxisOption("[APT] Preset", str, _apply_preset, choices=lambda: list(PRESETS)),
            axis("Method", str, "method", choices=lambda: list(METHODS)),
            axis("Phases", str, "phases", choices=lambda: list(PHASE_POLICIES)),
            axis("Statistical matching", float, "matching"),
            axis("Schedule strength", float, "gamma"),
            axis("Window overlap", float, "overlap"),
            axis("Words per window", float, "word_threshold"),
            module.AxisOption("[APT] Upscaler", str, _apply_upscaler, choices=choices),
            axis("Skip residual", _boolean, "skip_residual", choices=lambda: ["True", "False"]),
            axis("Hold the picture", float, "hold"),
            axis("Hold until", float, "hold_until"),
            axis("Hold width", float, "hold_width"),
            axis("Colour fix", float, "colour_fix"),
        ]
    )
