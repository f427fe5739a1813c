"""Every setting of a job, once: the command line, the page, infotexts and the API are made from these two dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from apt_ext.written import AUTO, REGION, Region, read_ratios, read_regions, read_window

__all__ = [
    "BORDERS",
    "FILLS",
    "METHODS",
    "PHASE_POLICIES",
    "PRESETS",
    "PUBLISHED_WINDOWS",
    "UPSCALERS",
    "Options",
    "Preset",
    "Region",
    "Schedule",
    "Setting",
    "beside_mask",
    "blur_std",
    "has_residual",
    "infotext_key",
    "preset_named",
    "published",
    "reanchors",
    "settings",
]

METHODS = ("multidiffusion", "demofusion", "accdiffusion")
PHASE_POLICIES = ("progressive", "double", "direct")
BORDERS = ("inside", "over")
FILLS = ("reflect", "zero")
UPSCALERS = ("lanczos", "bicubic", "latent")
METHOD_BLUR = {"multidiffusion": 0.0, "demofusion": 1.0, "accdiffusion": 0.8}


@dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name and default.

    Attributes:
        label, help: in a user's words.
        choices: the values that there are.
        known: some of the values of a free text. `other`: what else it may be.
        least, most: of a number.
        slider: how far the page's slider goes, where the whole range would make it coarse. `step`: of the slider.
    """

    label: str
    help: str
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    other: str = ""
    least: float | None = None
    most: float | None = None
    slider: float | None = None
    step: float = 0.05


def _setting(default: Any, label: str, text: str, **limits: Any) -> Any:
    return dataclasses.field(default=default, metadata={"setting": Setting(label, text, **limits)})


def _check_all(settings_of: Options | Schedule) -> None:
    for field in dataclasses.fields(settings_of):
        _check(field.name, getattr(settings_of, field.name), field.metadata["setting"], type(field.default))


def _check(name: str, value: Any, limits: Setting, kind: type) -> None:
    shown, whole = _shown(name, limits), kind is int
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{shown} {value!r} is neither true nor false")
    elif limits.choices:
        if value not in limits.choices:
            raise ValueError(f"{shown} {value!r} does not exist; use one of {', '.join(limits.choices)}")
    elif limits.least is not None and limits.most is not None:
        use = f"use a {'whole ' if whole else ''}number from {limits.least} to {limits.most}"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{shown} {value!r} is {'a text, no number' if isinstance(value, str) else 'no such number'}; {use}")
        if not limits.least <= value <= limits.most:
            raise ValueError(f"{shown} {value!r} is out of range; {use}")
    elif not limits.known:
        if not isinstance(value, str):
            raise ValueError(f"{shown} {value!r} is no text; use {limits.other}")
    elif not isinstance(value, str) or not value.strip():
        raise _not_known(shown, value, limits)


def _shown(name: str, limits: Setting) -> str:
    """A setting as the page calls it and, where that is another name, as programs do."""
    return limits.label if limits.label.lower() == name.replace("_", " ") else f"{limits.label} ({name})"


def _not_known(shown: str, value: Any, limits: Setting) -> ValueError:
    return ValueError(f"{shown} {value!r} cannot be used; use one of {', '.join(limits.known)}, or {limits.other}")


@dataclass(frozen=True)
class Options:
    """Settings of the method. The defaults are APT over DemoFusion, the preset Balanced.

    Raises:
        ValueError: on construction, in one sentence with the value and the remedy.
    """

    method: str = _setting(
        "demofusion",
        "Method",
        "how the large picture is seen: by windows (multidiffusion), by views of the whole picture too (demofusion), with words for each window (accdiffusion)",
        choices=METHODS,
    )
    matching: float = _setting(
        0.25,
        "Statistical matching",
        "more texture: every phase gets the contrasts of the smaller picture (APT's Statistical Matching); 0 for none, 1 may wrinkle skies",
        least=0.0,
        most=1.0,
    )
    gamma: float = _setting(
        0.75,
        "Schedule strength",
        "above 0 a larger picture starts from more noise, so that more of it is drawn anew (exponent of APT's Scale-aware Scheduling)",
        least=-2.0,
        most=2.0,
    )
    phases: str = _setting(
        "double",
        "Phases",
        "the picture by factors of at most 2 ('double'), x 2, x 3, ... ('progressive'), at once ('direct'), or ratios to the base such as 1.5,2,4",
        known=PHASE_POLICIES,
        other="a rising list of ratios from 1 such as 1.5,2,4",
    )
    reanchor: str = _setting(
        "auto", "Re-anchoring", "DemoFusion's correction at the end of a phase; 'auto': all but MultiDiffusion", choices=("auto", "on", "off")
    )
    overlap: float = _setting(0.25, "Window overlap", "share of a window that the next one covers again", least=0.0, most=0.75)
    jitter: float = _setting(1.0, "Jitter", "how far the windows move from step to step, against seams; a share of the largest shift", least=0.0, most=1.0)
    border: str = _setting("inside", "Windows at the border", "kept inside the picture, or reaching over its border", choices=BORDERS)
    fill: str = _setting("reflect", "Beyond the border", "what blur, dilated views and windows see beyond the border", choices=FILLS)
    feather: float = _setting(0.5, "Feathering", "share of a window over which its weight fades towards the edges", least=0.0, most=1.0)
    residual_decay: float = _setting(
        3.0, "Decay of the skip residual", "how fast the pull to the input fades (exponent a1); higher invents more", least=0.0, most=100.0, slider=10.0
    )
    dilated_decay: float = _setting(
        1.0, "Decay of the dilated path", "how fast the views of the whole picture fade (exponent a2)", least=0.0, most=100.0, slider=10.0
    )
    blur_decay: float = _setting(1.0, "Decay of the blur", "how fast the blur of the dilated path fades (exponent a3)", least=0.0, most=100.0, slider=10.0)
    blur: float = _setting(1.0, "Blur", "blur of the dilated path, in times the method's own; 0 for none", least=0.0, most=10.0, slider=5.0)
    tolerance: float = _setting(
        0.1, "Tolerance", "windows or views that would weigh less than this are left out, which saves time", least=0.0, most=0.5, step=0.001
    )
    word_threshold: float = _setting(
        0.3, "Words per window", "AccDiffusion: share of a window that a word must fill to stay in that window's prompt; 0 keeps all words", least=0.0, most=1.0
    )
    upscaler: str = _setting(
        "lanczos",
        "Upscaler",
        "how the picture is enlarged before a phase: its pixels ('lanczos', 'bicubic', an image upscaler) or its latents ('latent', as DemoFusion does)",
        known=UPSCALERS,
        other="an upscaler's name",
    )
    skip_residual: bool = _setting(True, "Skip residual", "pull every step towards the picture that the phase began with (DemoFusion, AccDiffusion)")
    colour_fix: float = _setting(
        0.25,
        "Colour fix",
        "what is coarser than so many pixels of the smaller picture is taken from it: 0.25 keeps all that it shows, 4 its colours, 0 nothing",
        least=0.0,
        most=64.0,
        slider=16.0,
        step=0.25,
    )
    window_batch: int = _setting(16, "Window batch", "windows per model call; memory and speed, not the picture", least=1, most=1024, slider=64, step=1)
    window: str = _setting(
        AUTO,
        "Window",
        "size of a window in pixels, width x height; 'auto': what the model was trained at",
        known=(AUTO,),
        other="a width and a height in pixels such as '640x512'",
    )
    regions: str = _setting(
        "",
        "Regions",
        f"parts of the picture with a text of their own besides the prompt, a line for each: from left to right x from top to bottom, such as {REGION}",
        other=f"lines such as '{REGION}'",
    )

    def __post_init__(self) -> None:
        _check_all(self)
        self.phase_ratios()
        self.window_pixels()
        self.parts()

    def parts(self) -> tuple[Region, ...]:
        """The regions, read."""
        return read_regions(self.regions)

    def phase_ratios(self) -> tuple[float, ...]:
        """The custom list of ratios to the base size in `phases`; empty for a policy."""
        if self.phases in PHASE_POLICIES:
            return ()
        ratios = read_ratios(self.phases)
        if ratios is None:
            raise _not_known(settings()["phases"].label, self.phases, settings()["phases"])
        return ratios

    def window_pixels(self) -> tuple[int, int] | None:
        """(width, height) of a window in pixels; None for the model's own."""
        if self.window.strip().lower() == AUTO:
            return None
        size = read_window(self.window)
        if size is None:
            raise _not_known(settings()["window"].label, self.window, settings()["window"])
        return size


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a job and who walks them. In a WebUI these are the host's own fields.

    Raises:
        ValueError: on construction, in one sentence with the value and the remedy.
    """

    steps: int = _setting(40, "Steps", "steps of the whole noise schedule; the strength runs a share of them", least=1, most=1000, step=1)
    strength: float = _setting(
        0.25, "Denoising strength", "share of the steps that a phase runs (APT's shortcut); 1 runs all, higher invents more", least=0.01, most=1.0
    )
    sampler: str = _setting("dpmpp_2m", "Sampler", "a sampler of k-diffusion's", known=("dpmpp_2m", "euler"), other="another of k-diffusion's")
    spacing: str = _setting("karras", "Schedule type", "how the noise levels are spaced", choices=("karras", "normal", "exponential"))

    def __post_init__(self) -> None:
        _check_all(self)


@dataclass(frozen=True)
class Preset:
    """Settings that go together, as they were measured. `text`: what they are good for, in one sentence."""

    options: Options = Options()
    schedule: Schedule = Schedule()
    text: str = ""


PUBLISHED_WINDOWS: dict[str, Any] = {"overlap": 0.5, "feather": 0.0, "border": "inside", "fill": "zero", "tolerance": 0.0}
"""How the base methods' own code lays and blends windows: half overlapping, all pixels alike, zeros beyond the border, both paths at every step."""

BARE: dict[str, Any] = {"matching": 0.0, "gamma": 0.0, "upscaler": "latent", "skip_residual": True, "colour_fix": 0.0}
"""The base methods without any part of APT."""

PRESETS: dict[str, Preset] = {
    "Fast": Preset(Options(method="multidiffusion", phases="direct"), Schedule(steps=24), "crisp edges in the least time: windows alone, in one go"),
    "Balanced": Preset(text="crisp edges and new texture, by factors of two; begin here"),
    "Quality": Preset(Options(matching=0.5, tolerance=0.01), Schedule(steps=64), "more texture, for half as much time again"),
    "Published": Preset(
        Options(phases="progressive", **BARE, **PUBLISHED_WINDOWS),
        Schedule(50, 1.0, "euler", "normal"),
        "DemoFusion (Du et al., CVPR 2024) as published, to compare with: ten times as long, and another picture",
    ),
}


def settings(of: type[Options] | type[Schedule] = Options) -> dict[str, Setting]:
    """The settings of a dataclass by name."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(of)}


def infotext_key(name: str) -> str:
    """A setting's name in the infotext; empty for the one that does not change the picture."""
    return "" if name == "window_batch" else f"APT {name.replace('_', ' ')}"


def preset_named(name: str) -> Preset:
    """A preset by its name, in any case of letters.

    Raises:
        ValueError: for one that does not exist.
    """
    found = next((preset for known, preset in PRESETS.items() if known.lower() == str(name).lower()), None)
    if found is None:
        raise ValueError(f"preset {name!r} does not exist; use one of {', '.join(PRESETS)}")
    return found


def blur_std(options: Options) -> float:
    """Std of the dilated path's blur in latent pixels."""
    return METHOD_BLUR[options.method] * options.blur


def reanchors(options: Options) -> bool:
    """Whether a phase ends with DemoFusion's re-anchoring, "auto" resolved: MultiDiffusion has none, and beside Statistical Matching it still helps."""
    return options.reanchor == "on" or (options.reanchor == "auto" and options.method != "multidiffusion")


def beside_mask(options: Options) -> Options:
    """The options of a job with a mask: what is kept outside of it has statistics of its own, which must not move with the rest."""
    return dataclasses.replace(options, reanchor="off") if options.reanchor == "auto" else options


def has_residual(options: Options) -> bool:
    """Whether a phase mixes the skip residual into the sampler's state. MultiDiffusion has none: it starts from the noised latent and goes its own way."""
    return options.skip_residual and options.method != "multidiffusion"


def published(preset: Preset) -> Preset:
    """The same job by the base method alone, without any part of APT: enlarged latents, no matching, no colour fix, the plain schedule, every step.

    MultiDiffusion keeps its start in the middle of the schedule: it has no skip residual, so from full noise it would make another picture.
    """
    strength = preset.schedule.strength if preset.options.method == "multidiffusion" else 1.0
    return Preset(dataclasses.replace(preset.options, **BARE), dataclasses.replace(preset.schedule, strength=strength), preset.text)
