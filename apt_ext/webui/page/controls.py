"""The controls in their frozen order: what the page shows, and the arguments of the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apt_ext.options import METHOD_BLUR, PRESETS, Options, infotext_key, settings

__all__ = [
    "ACCORDION",
    "COLOUR_NOTE",
    "CONTROLS",
    "CUSTOM",
    "LATENT_NOTE",
    "LATER_NOTE",
    "LEVELS_NOTE",
    "SCALE",
    "SIZE_NOTE",
    "STRENGTH",
    "Control",
    "defaults",
    "pasted",
    "preset_sentences",
]

CUSTOM = "Custom"
HOST_DEFAULTS: dict[str, Any] = {"window_batch": 4}  # Stable Diffusion's UNet is larger than the embedded one


@dataclass(frozen=True)
class Control:
    """One control of the page and one argument of the API.

    Attributes:
        name: of the argument, and of the field of `Options` where it is one.
        default, label, help: what the page shows.
        choices: of a list; `free` allows other text too.
        least, most: of a number. `slider`: how far the page's slider goes. `step`: of the slider.
        infotext: name in the infotext; empty where the setting does not change the picture.
        former: its name in infotexts of earlier versions.
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
    step: float = 0.05
    infotext: str = ""
    former: str = ""


def _option(name: str, former: str = "") -> Control:
    of = settings()[name]
    return Control(
        name,
        HOST_DEFAULTS.get(name, getattr(Options, name)),
        of.label,
        of.help[0].upper() + of.help[1:],
        choices=of.choices or of.known,
        free=bool(of.known),
        least=of.least,
        most=of.most,
        slider=of.slider or of.most,
        step=of.step,
        infotext=infotext_key(name),
        former=former,
    )


# The order is the API's order of arguments: it is frozen, new controls go to the end.
CONTROLS: tuple[Control, ...] = (
    Control("preset", CUSTOM, "Preset", "fills the settings below; Custom takes them as they are", choices=(CUSTOM, *PRESETS)),
    _option("method"),
    _option("upscaler"),
    _option("colour_fix"),
    _option("phases"),
    _option("matching"),
    _option("gamma"),
    _option("overlap"),
    _option("jitter"),
    _option("window_batch"),
    Control("tiled_vae", True, "Tiled VAE", "Decode and encode large pictures in tiles, so that memory does not grow with them", infotext="APT tiled VAE"),
    Control("save_phases", False, "Save intermediate phases", "Save the picture at the end of every phase"),
    _option("word_threshold", former="APT words"),
    Control("draw_words", False, "Picture of the words", "AccDiffusion: one more picture with the windows drawn over the result, each with the words it kept"),
    _option("skip_residual"),
    _option("residual_decay", former="APT residual"),
    _option("dilated_decay", former="APT dilated"),
    _option("blur_decay", former="APT sharpen"),
    _option("blur"),
    _option("feather"),
    _option("tolerance"),
    _option("border"),
    _option("fill"),
    _option("reanchor"),
    _option("window"),
    _option("regions"),
    Control("own_settings", False, "Settings from the picture", "Img2img, also its batch tab: a picture whose infotext names APT is enlarged as it says there"),
)
STRENGTH = "The denoising strength: 0.25 sharpens and adds texture, from about 0.4 small things turn into other things"
ACCORDION = "APT upscaling"  # not "APT upscale", the entry of the Scripts dropdown
# What the panel has to say besides its numbers.
LATENT_NOTE = "A Latent upscaler: shapes drift, and blur below a denoising strength of about 0.5; Lanczos keeps the picture."
COLOUR_NOTE = "The colour fix keeps shapes too: at this denoising strength the old ones show through the new; use 4 or more, or 0."
LEVELS_NOTE = "This sampler chooses its own steps, so the number of evaluations is an estimate."
SIZE_NOTE = "The picture is not to become larger, so it is only drawn anew at its size."
LATER_NOTE = "This is for the loaded checkpoint; the chosen one is loaded with its first picture, and its plan appears then."
SCALE = Control("scale", 2.0, "Scale", "how many times larger, along a side", least=1.0, most=8.0, slider=8.0)


def preset_sentences() -> dict[str, str]:
    """What each entry of the preset's line means, for the page."""
    own = "all fields as they stand, here and above; to begin with, choose Balanced."
    return {CUSTOM: own} | {name: f"{preset.text}." for name, preset in PRESETS.items()}


def defaults() -> dict[str, Any]:
    """Every control's default by name."""
    return {control.name: control.default for control in CONTROLS}


def pasted(control: Control, infotext: dict[str, Any]) -> Any:
    """A control's value in a parsed infotext, also of an earlier version; None where it is not there."""
    if control.name == "preset":
        return CUSTOM if "APT method" in infotext else None
    text = infotext.get(control.infotext, infotext.get(control.former)) if control.infotext else None
    if text is None:
        # Where there were none, none are written.
        return "" if control.name == "regions" and "APT method" in infotext else None
    if isinstance(control.default, bool):
        return str(text) == "True"
    if isinstance(control.default, str):
        return text
    if control.name == "blur" and "APT residual" in infotext:
        return _former_blur(text, METHOD_BLUR.get(str(infotext.get("APT method")), 0.0))
    try:
        return (int if isinstance(control.default, int) else float)(text)
    except (TypeError, ValueError):
        return None  # a word that earlier versions had


def _former_blur(text: Any, own: float) -> float:
    """It was once a std in latent pixels, or "auto" for the method's `own`."""
    try:
        return float(text) / own if own else 1.0
    except ValueError:
        return 1.0
