"""Every setting of the method, once: the command line, the page, infotexts and the API are made from this dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BORDERS",
    "FILLS",
    "METHODS",
    "PHASE_POLICIES",
    "PRESETS",
    "PUBLISHED",
    "PUBLISHED_WINDOWS",
    "UPSCALERS",
    "Options",
    "Preset",
    "blur_of",
    "has_residual",
    "preset_named",
    "preset_options",
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
class Preset:
    """Settings that go together: fields of `Options` (what is not named keeps its default), and the sampler and noise schedule that they were measured with,
    which are the host's own defaults."""

    options: Mapping[str, Any]
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"


PUBLISHED_WINDOWS: dict[str, Any] = {"overlap": 0.5, "feather": 0.0, "border": "inside", "fill": "zero", "tolerance": 0.0}
"""How the base methods' own code lays and blends windows: half overlapping, all pixels alike, zeros beyond the border, both paths at every step."""

PUBLISHED: dict[str, Any] = {
    "steps": 50,
    "shortcut": 1.0,
    "matching": 0.0,
    "gamma": 0.0,
    "phases": "progressive",
    "upscaler": "latent",
    "colour_fix": 0.0,
    **PUBLISHED_WINDOWS,
}
"""DemoFusion's published settings (Du et al., CVPR 2024): enlarged latents, phase by phase, every step."""

PRESETS: dict[str, Preset] = {
    "Fast": Preset({"method": "multidiffusion", "steps": 24, "phases": "direct"}),
    "Balanced": Preset({"steps": 40}),
    "Quality": Preset({"steps": 64, "matching": 0.5, "tolerance": 0.01}),
    "Published": Preset(PUBLISHED, sampler="euler", schedule="normal"),
}


def setting(default: Any, label: str, text: str, **limits: Any) -> Any:
    """A field with its label, its help and its limits: `choices`, `known` choices of a free text, or `least` and `most`, and `word` for one allowed word beside
    numbers. A switch has none."""
    return dataclasses.field(default=default, metadata={"label": label, "help": text, **limits})


@dataclass(frozen=True)
class Options:
    """Settings of one upscaling job. The defaults are APT over DemoFusion.

    Raises:
        ValueError: on construction, in one sentence with the value and the remedy.
    """

    method: str = setting("demofusion", "Method", "base method of patch fusion", choices=METHODS)
    steps: int = setting(30, "Steps", "steps of the whole noise schedule; the shortcut runs a share of them", least=1, most=1000)
    shortcut: float = setting(0.25, "Shortcut", "share of the steps that a phase runs (the denoising strength); 1 runs all", least=0.01, most=1.0)
    matching: float = setting(0.25, "Statistical matching", "strength of APT's Statistical Matching; 0 turns it off", least=0.0, most=1.0)
    gamma: float | str = setting(
        0.75, "Schedule strength", "exponent of APT's Scale-aware Scheduling; 0 leaves the schedule, 'auto' measures it", least=-2.0, most=2.0, word="auto"
    )
    phases: str = setting(
        "double",
        "Phases",
        "the picture by factors of at most 2 ('double'), x 2, x 3, ... ('progressive'), at once ('direct'), or ratios to the base such as 1.5,2,4",
    )
    reanchor: str = setting(
        "auto", "Re-anchoring", "DemoFusion's correction at the end of a phase; 'auto': all but MultiDiffusion", choices=("auto", "on", "off")
    )
    overlap: float = setting(0.25, "Window overlap", "share of a window that the next one covers again", least=0.0, most=0.75)
    jitter: float = setting(1.0, "Jitter", "share of the largest shift of the windows from step to step", least=0.0, most=1.0)
    border: str = setting("inside", "Windows at the border", "kept inside the picture, or reaching over its border", choices=BORDERS)
    fill: str = setting("reflect", "Beyond the border", "what blur, dilated views and windows see beyond the border", choices=FILLS)
    feather: float = setting(0.5, "Feathering", "share of a window over which its weight fades towards the edges", least=0.0, most=1.0)
    residual: float = setting(3.0, "Cosine of the skip residual", "exponent a1; larger lets the picture leave its start sooner", least=0.0, most=100.0)
    dilated: float = setting(1.0, "Cosine of the dilated path", "exponent a2; larger ends the dilated path sooner", least=0.0, most=100.0)
    sharpen: float = setting(1.0, "Cosine of the blur", "exponent a3; larger ends the blur sooner", least=0.0, most=100.0)
    blur: float | str = setting(
        "auto", "Blur", "std of the dilated path's blur in latent pixels; 'auto' is the method's own", least=0.0, most=10.0, word="auto"
    )
    tolerance: float = setting(0.1, "Tolerance", "a path whose weight is below it is not evaluated", least=0.0, most=0.5)
    words: float = setting(
        0.3, "Words per window", "AccDiffusion: share of a window that a word must fill to stay in that window's prompt; 0 keeps all words", least=0.0, most=1.0
    )
    dilated_every: int = setting(1, "Dilated path every", "evaluate the dilated path at every k-th step and hold its correction in between", least=1, most=8)
    upscaler: str = setting(
        "lanczos",
        "Upscaler",
        "how the picture is enlarged before a phase: its pixels ('lanczos', 'bicubic', an image upscaler) or its latents ('latent', as DemoFusion does)",
        known=UPSCALERS,
    )
    skip_residual: bool = setting(True, "Skip residual", "pull every step towards the picture that the phase began with (DemoFusion, AccDiffusion)")
    hold: float = setting(0.0, "Hold the picture", "how strongly the coarse shapes are held to the picture that the phase began with", least=0.0, most=1.0)
    hold_until: float = setting(0.3, "Hold until", "noise level at which the hold has faded out", least=0.01, most=20.0)
    hold_width: float = setting(0.25, "Hold width", "how coarse the held shapes are, in latent pixels of the smaller picture", least=0.05, most=4.0)
    colour_fix: float = setting(
        0.25,
        "Colour fix",
        "what is coarser than so many pixels of the smaller picture is taken from it: 0.25 keeps all that it shows, 4 its colours, 0 nothing",
        least=0.0,
        most=64.0,
    )
    window_batch: int = setting(16, "Window batch", "windows per model call; memory and speed, not the picture", least=1, most=1024)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), field.metadata, type(field.default))
        if self.phases not in PHASE_POLICIES:
            self.phase_ratios()

    def phase_ratios(self) -> tuple[float, ...]:
        """The custom list of ratios to the base size in `phases`; empty for a policy."""
        if self.phases in PHASE_POLICIES:
            return ()
        try:
            ratios = tuple(float(part) for part in str(self.phases).split(","))
        except ValueError:
            ratios = ()
        if not ratios or not all(math.isfinite(r) and r >= 1 for r in ratios) or list(ratios) != sorted(set(ratios)):
            policies = ", ".join(PHASE_POLICIES)
            raise ValueError(f"phases {self.phases!r} is neither one of {policies} nor a rising list of ratios from 1 such as 1.5,2,4")
        return ratios


def _check(name: str, value: Any, limits: Mapping[str, Any], kind: type) -> None:
    shown, whole = name.replace("_", " "), kind is int
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{shown} {value!r} is neither true nor false")
    elif "known" in limits:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{shown} {value!r} is not a name; use one of {', '.join(limits['known'])}, or an upscaler's name")
    elif "choices" in limits:
        if value not in limits["choices"]:
            raise ValueError(f"{shown} {value!r} does not exist; use one of {', '.join(limits['choices'])}")
    elif "least" in limits:
        if value == limits.get("word"):
            return
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not limits["least"] <= value <= limits["most"]:
            other = f" or {limits['word']!r}" if "word" in limits else ""
            raise ValueError(f"{shown} {value!r} is out of range; use a {'whole ' if whole else ''}number from {limits['least']} to {limits['most']}{other}")


def settings() -> dict[str, dataclasses.Field[Any]]:
    """The fields of `Options` by name, with label, help and limits in their metadata."""
    return {field.name: field for field in dataclasses.fields(Options)}


def preset_named(name: str) -> Preset:
    """A preset by its name, in any case of letters.

    Raises:
        ValueError: for one that does not exist.
    """
    found = next((preset for known, preset in PRESETS.items() if known.lower() == str(name).lower()), None)
    if found is None:
        raise ValueError(f"preset {name!r} does not exist; use one of {', '.join(PRESETS)}")
    return found


def preset_options(name: str) -> tuple[Options, str, str]:
    """A preset's options, its sampler, named as in `k_diffusion.sampling`, and its noise schedule."""
    preset = preset_named(name)
    return Options(**preset.options), preset.sampler, preset.schedule


def blur_of(options: Options) -> float:
    """Std of the dilated path's blur, "auto" resolved to the method's own."""
    return METHOD_BLUR[options.method] if isinstance(options.blur, str) else options.blur


def reanchors(options: Options) -> bool:
    """Whether a phase ends with DemoFusion's re-anchoring, "auto" resolved: MultiDiffusion has none, and beside Statistical Matching it still helps."""
    return options.reanchor == "on" or (options.reanchor == "auto" and options.method != "multidiffusion")


def has_residual(options: Options) -> bool:
    """Whether a phase mixes the skip residual into the sampler's state. MultiDiffusion has none: it starts from the noised latent and goes its own way."""
    return options.skip_residual and options.method != "multidiffusion"


def published(options: Options) -> Options:
    """The same job by the base method alone, without any part of APT: enlarged latents, no matching, nothing held, the plain schedule, every step.

    MultiDiffusion keeps its start in the middle of the schedule: it has no skip residual, so from full noise it would make another picture.
    """
    own: dict[str, Any] = {"matching": 0.0, "gamma": 0.0, "dilated_every": 1, "upscaler": "latent", "skip_residual": True, "hold": 0.0, "colour_fix": 0.0}
    return dataclasses.replace(options, **own, shortcut=options.shortcut if options.method == "multidiffusion" else 1.0)
