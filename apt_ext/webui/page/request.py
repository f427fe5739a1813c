"""What the user asked for: how arguments of the page and of the API become options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apt_ext.core.noise_levels import shortcut_start
from apt_ext.options import PRESETS, Options, infotext_key, preset_named, settings
from apt_ext.webui.page.controls import CONTROLS, CUSTOM, defaults

__all__ = ["Request", "flag", "infotext", "named", "parse", "preset_host_values", "preset_values", "replaced"]

SWITCHES = ("tiled_vae", "save_phases", "draw_words", "own_settings")
NOT_IN_PRESETS = ("window_batch", "regions")  # one is the machine's, the other the picture's


@dataclass(frozen=True)
class Request:
    """A job as the user asked for it: the method's options (the schedule comes from the host's own fields), and the adapter's own switches."""

    options: Options = field(default_factory=Options)
    tiled_vae: bool = True
    save_phases: bool = False
    draw_words: bool = False
    own_settings: bool = False


def preset_values(preset: Any) -> dict[str, Any]:
    """The controls that a preset sets, by name: every setting that changes the picture.

    Raises:
        ValueError: for a preset that does not exist.
    """
    if isinstance(preset, str) and preset.lower() == CUSTOM.lower():
        return {}
    try:
        whole = dataclasses.asdict(preset_named(preset).options)
    except ValueError:
        raise ValueError(f"preset {preset!r} does not exist; use one of {', '.join((CUSTOM, *PRESETS))}") from None
    return {name: value for name, value in whole.items() if name not in NOT_IN_PRESETS}


def preset_host_values(name: str) -> dict[str, Any]:
    """What a preset wants of the host's own fields. The page fills them in; an API's caller passes them.

    Returns:
        "steps" for img2img, which runs their share of "denoising", "hires_steps", which the host's second pass runs in full, and "upscaler" by its
        name in `Options`, for the host's second pass.

    Raises:
        ValueError: for a preset that does not exist.
    """
    preset = preset_named(name)
    own = preset.schedule
    hires = own.steps - shortcut_start(own.steps, own.strength)
    return {"steps": own.steps, "hires_steps": hires, "denoising": own.strength, "upscaler": preset.options.upscaler}


def flag(label: str, value: Any) -> bool:
    """A switch's value.

    Raises:
        ValueError: for anything but true and false: the text "False" would count as true.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{label} {value!r} is neither true nor false")
    return value


def _whole(name: str, value: Any) -> Any:
    # Sliders and JSON may hand a whole number over as 16.0.
    return int(value) if type(getattr(Options, name)) is int and isinstance(value, float) and value.is_integer() else value


def parse(args: Sequence[Any], base: Mapping[str, Any] | None = None) -> Request:
    """The arguments of `CONTROLS`, in order or as one dict with names, to a request.

    Args:
        args: positional values, of which the last ones may be missing or None; or a single dict.
        base: values of controls that are not given; `defaults()` when left out.

    Raises:
        ValueError: in one sentence, for a name or a value that cannot be used.
    """
    values = dict(base or defaults())
    if args and isinstance(args[0], Mapping):
        # What is named goes before the preset; in order, a preset fills the rest as it does on the page.
        values |= preset_values(args[0].get("preset", values["preset"])) | _known(args[0])
    else:
        values |= {control.name: value for control, value in zip(CONTROLS, args, strict=False) if value is not None}
        values |= preset_values(values["preset"])
    options = Options(**{name: _whole(name, values[name]) for name in settings()})
    return Request(options, **{control.name: flag(control.label, values[control.name]) for control in CONTROLS if control.name in SWITCHES})


def _known(named: Mapping[str, Any]) -> dict[str, Any]:
    known = [control.name for control in CONTROLS]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ValueError(f"setting {unknown[0]!r} does not exist; use some of {', '.join(known)}")
    return dict(named)


def _fraction(name: str, value: Any) -> Any:
    # The page hands 1.0 over as 1, presets do not: the same settings are the same text.
    return float(value) if type(getattr(Options, name)) is float else value


def infotext(request: Request, upscaler: bool = True) -> dict[str, Any]:
    """Everything of a request that changes the picture, under its infotext names. `upscaler`: whether APT's own is in force, and not the host's field."""
    names = [name for name in settings() if infotext_key(name) and (upscaler or name != "upscaler")]
    values = {infotext_key(name): _fraction(name, getattr(request.options, name)) for name in names}
    return {name: value for name, value in values.items() if value != ""} | {"APT tiled VAE": request.tiled_vae}


def named(request: Request) -> dict[str, Any]:
    """A request as `parse` takes it by names, of which every one is there."""
    switches = {name: getattr(request, name) for name in SWITCHES}
    return {"preset": CUSTOM} | {name: getattr(request.options, name) for name in settings()} | switches


def replaced(request: Request, fields: Mapping[str, Any]) -> Request:
    """A request with some of its values replaced, as the X/Y/Z plot does. Under "preset" a preset's fields are, before the others.

    Raises:
        ValueError: for a preset that does not exist or a value that cannot be used.
    """
    given = dict(fields)
    if preset := given.pop("preset", None):
        given = preset_values(preset) | given
    switches = {control.name: flag(control.label, given.pop(control.name)) for control in CONTROLS if control.name in SWITCHES and control.name in given}
    options = dataclasses.replace(request.options, **{name: _whole(name, value) for name, value in given.items()})
    return dataclasses.replace(request, options=options, **switches)
