"""What the user asked for: the controls in their frozen order, and how arguments of the page and of the API become options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apt_ext.core.schedule import shortcut_start
from apt_ext.options import PHASE_POLICIES, PRESETS, Options, preset_options, settings

__all__ = ["CONTROLS", "CUSTOM", "SCALE", "Control", "Request", "defaults", "infotext", "parse", "preset_host_values", "preset_values", "replaced"]

CUSTOM = "Custom"
FROM_HOST = ("steps", "shortcut")  # the host's own fields: (hires) steps and denoising strength
# Where the whole range would make the slider coarse.
SLIDERS = {"window_batch": 64, "residual": 10.0, "dilated": 10.0, "sharpen": 10.0, "blur": 5.0, "hold_until": 5.0, "hold_width": 2.0, "colour_fix": 16.0}
HOST_DEFAULTS: dict[str, Any] = {"window_batch": 4}  # Stable Diffusion's UNet is larger than the embedded one


@dataclass(frozen=True)
class Control:
    """One control of the page and one argument of the API.

    Attributes:
        name: of the argument, and of the field of `Options` where it is one.
        default, label, help: what the page shows.
        choices: of a list; `free` allows other text too.
        least, most: of a number. `slider`: how far the page's slider goes.
        advanced: shown under "Advanced".
        word: this is the box that replaces the number of the control before it by this word.
        infotext: name in the infotext; empty where the setting does not change the picture.
    """

    name: str
    default: Any
    label: str
    help: str
    choices: tuple[str, ...] = ()
    free: bool = False
    least: float | None = None
    most: float | None = None
    slider: float | None = None
    advanced: bool = False
    word: str = ""
    infotext: str = ""

    @property
    def step(self) -> float:
        """Of a slider."""
        return 1 if isinstance(self.default, int) else {"tolerance": 0.001, "colour_fix": 0.25}.get(self.name, 0.05)


def _key(name: str) -> str:
    """A setting's name in the infotext; empty for the one that does not change the picture."""
    return "" if name == "window_batch" else f"APT {name.replace('_', ' ')}"


def _of_option(name: str, advanced: bool = False) -> list[Control]:
    limits = settings()[name].metadata
    default = HOST_DEFAULTS.get(name, settings()[name].default)
    text = limits["help"][0].upper() + limits["help"][1:]
    word = limits.get("word", "")
    extent: dict[str, Any] = {"choices": PHASE_POLICIES, "free": True}  # of the phases
    if isinstance(default, bool):
        extent = {}
    elif "known" in limits:
        extent = {"choices": tuple(limits["known"]), "free": True}
    elif "choices" in limits:
        extent = {"choices": tuple(limits["choices"])}
    elif "least" in limits:
        extent = {"least": limits["least"], "most": limits["most"], "slider": SLIDERS.get(name, limits["most"])}
    number = 0.0 if word and isinstance(default, str) else default
    control = Control(name, number, limits["label"], text, advanced=advanced, infotext=_key(name), **extent)
    if not word:
        return [control]
    return [control, Control(f"{name}_{word}", default == word, f"{limits['label']}: {word}", text, advanced=advanced, word=word)]


# The order is the API's order of arguments: it is frozen, new controls go to the end.
CONTROLS: tuple[Control, ...] = (
    Control("preset", CUSTOM, "Preset", "fills the settings below; Custom takes them as they are", choices=(CUSTOM, *PRESETS)),
    *_of_option("method"),
    *_of_option("phases"),
    *_of_option("matching"),
    *_of_option("gamma"),
    *_of_option("overlap"),
    *_of_option("jitter"),
    *_of_option("window_batch"),
    Control("tiled_vae", True, "Tiled VAE", "decode and encode large pictures in tiles, so that memory does not grow with them", infotext="APT tiled VAE"),
    Control("save_phases", False, "Save intermediate phases", "save the picture at the end of every phase"),
    *_of_option("residual", advanced=True),
    *_of_option("dilated", advanced=True),
    *_of_option("sharpen", advanced=True),
    *_of_option("blur", advanced=True),
    *_of_option("border", advanced=True),
    *_of_option("fill", advanced=True),
    *_of_option("feather", advanced=True),
    *_of_option("tolerance", advanced=True),
    *_of_option("reanchor", advanced=True),
    *_of_option("words"),
    Control("draw_words", False, "Picture of the words", "AccDiffusion: one more picture with the windows drawn over the result, each with the words it kept"),
    *_of_option("dilated_every", advanced=True),
    *_of_option("upscaler"),
    *_of_option("skip_residual", advanced=True),
    *_of_option("hold", advanced=True),
    *_of_option("hold_until", advanced=True),
    *_of_option("hold_width", advanced=True),
    *_of_option("colour_fix"),
)
SCALE = Control("scale", 2.0, "Scale", "how many times larger, along a side", least=1.0, most=8.0, slider=8.0)

_BY_NAME = {control.name: control for control in CONTROLS}
_OPTION_NAMES = tuple(name for name in settings() if name not in FROM_HOST)


@dataclass(frozen=True)
class Request:
    """A job as the user asked for it: the method's options (steps and shortcut come from the host's own fields), and the adapter's own switches."""

    options: Options = field(default_factory=Options)
    tiled_vae: bool = True
    save_phases: bool = False
    draw_words: bool = False


def defaults() -> dict[str, Any]:
    """Every control's default by name."""
    return {control.name: control.default for control in CONTROLS}


def preset_values(preset: str) -> dict[str, Any]:
    """The controls that a preset sets, by name: its own settings, and the defaults of every other setting that changes the picture.

    Raises:
        ValueError: for a preset that does not exist.
    """
    if preset == CUSTOM:
        return {}
    if not isinstance(preset, str) or preset not in PRESETS:  # the page's own list has Custom too
        raise ValueError(f"preset {preset!r} does not exist; use one of {', '.join((CUSTOM, *PRESETS))}")
    own = {name: value for name, value in PRESETS[preset].options.items() if name not in FROM_HOST}
    return _to_controls({name: settings()[name].default for name in _OPTION_NAMES if name != "window_batch"} | own)


def preset_host_values() -> dict[str, dict[str, Any]]:
    """What each preset wants of the host's own fields. The page fills them in; an API's caller passes them.

    Returns:
        preset -> "steps" for img2img, which runs their share of "denoising", "hires_steps", which the host's second pass runs in full, and
        "upscaler" by its name in `Options`, for the host's second pass.
    """
    whole = {name: Options(**preset.options) for name, preset in PRESETS.items()}
    return {
        name: {
            "steps": options.steps,
            "hires_steps": options.steps - shortcut_start(options.steps, options.shortcut),
            "denoising": options.shortcut,
            "upscaler": options.upscaler,
        }
        for name, options in whole.items()
    }


def _to_controls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `Options` fields -> values of controls, where a word has a box of its own."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        box = next((control for control in CONTROLS if control.word and control.name == f"{name}_{control.word}"), None)
        if box is not None and box.name not in fields:
            values[box.name] = value == box.word
        if box is None or value != box.word:
            values[name] = value
    return values


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name.replace('_', ' ')} {value!r} is neither true nor false")
    return value


def _whole(name: str, value: Any) -> Any:
    # Sliders and JSON may hand a whole number over as 16.0.
    return int(value) if type(settings()[name].default) is int and isinstance(value, float) and value.is_integer() else value


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
        values |= preset_values(args[0].get("preset", values["preset"])) | _to_controls(_known(args[0]))
    else:
        values |= {control.name: value for control, value in zip(CONTROLS, args, strict=False) if value is not None}
        values |= preset_values(values["preset"])
    fields = {}
    for name in _OPTION_NAMES:
        fields[name] = _whole(name, values[name])
        word = settings()[name].metadata.get("word")
        if word and _flag(f"{name} {word}", values[f"{name}_{word}"]):
            fields[name] = word
    return Request(Options(**fields), **{name: _flag(name, values[name]) for name in ("tiled_vae", "save_phases", "draw_words")})


def _known(named: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = [name for name in named if name not in _BY_NAME]
    if unknown:
        raise ValueError(f"setting {unknown[0]!r} does not exist; use some of {', '.join(_BY_NAME)}")
    return named


def infotext(request: Request, upscaler: bool = True) -> dict[str, Any]:
    """Everything of a request that changes the picture, under its infotext names. `upscaler`: whether APT's own is in force, and not the host's field."""
    names = [name for name in _OPTION_NAMES if _key(name) and (upscaler or name != "upscaler")]
    return {_key(name): getattr(request.options, name) for name in names} | {"APT tiled VAE": request.tiled_vae}


def replaced(request: Request, fields: Mapping[str, Any]) -> Request:
    """A request with some fields of its options replaced, as the XYZ plot does. Under "preset" a preset's fields are, before the others.

    Raises:
        ValueError: for a preset that does not exist or a value that cannot be used.
    """
    given = dict(fields)
    if preset := given.pop("preset", None):
        whole = preset_options(preset)[0]
        given = {name: getattr(whole, name) for name in _OPTION_NAMES if name != "window_batch"} | given
    return dataclasses.replace(request, options=dataclasses.replace(request.options, **{name: _whole(name, value) for name, value in given.items()}))
