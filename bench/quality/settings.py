"""The grid of the benchmark as data: every setting that is measured, in groups that each answer one question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apt_ext.options import PRESETS, Options, Schedule, has_residual, reanchors

__all__ = ["BASELINES", "COMPARED", "LANCZOS", "PUBLISHED", "TRUTH", "Setting", "all_settings", "groups", "key_of"]


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark.

    Attributes:
        name, group: where it is shown; the same content under two names is run once.
        how: "method" runs the model. The others do not: "lanczos" is the plain enlargement, "truth" the true picture, "lanczos again" and "truth again"
            are what the autoencoder makes of them.
        scales: the linear factors that it is measured at.
        full: whether it is measured on all pictures, or on the few that explore.
        beside: the row of its group that the group's question compares it with. Every row is compared with Lanczos as well.
    """

    name: str
    group: str
    options: Options = dataclasses.field(default_factory=Options)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    guidance: float = 1.0
    how: str = "method"
    scales: tuple[int, ...] = (2, 4)
    full: bool = False
    beside: str = ""


def content(setting: Setting) -> dict[str, Any]:
    """What makes a setting's pictures: not its names, nor what does not act in it, and with "auto" resolved."""
    if setting.how != "method":
        return {"how": setting.how}
    chosen = setting.options
    options = dataclasses.asdict(chosen)
    for name in ("window_batch", "word_threshold", "regions"):  # the embedded model has no prompts
        del options[name]
    if chosen.window_pixels() is None:  # the model's own, as in results from before there was a choice
        del options["window"]
    if chosen.method == "multidiffusion":  # neither a residual nor a dilated path
        for name in ("residual_decay", "dilated_decay", "blur_decay", "blur", "tolerance"):
            del options[name]
    options |= {"skip_residual": has_residual(chosen), "reanchor": reanchors(chosen)}
    options = {name: float(value) if isinstance(value, (int, float)) else value for name, value in options.items()}
    return {"how": "method", "guidance": float(setting.guidance), **dataclasses.asdict(setting.schedule), **options}


def key_of(setting: Setting, scale: int, kind: str, world: str, model: str, seed: int, *, finished: bool = True) -> str:
    """A name for one run's results, or for its pictures before their colours are `finished`, which are the same for every colour fix.

    Pictures are numbered alike whatever their count, so the count is no part of it and a larger one adds to the smaller.
    """
    rest = {"seed": seed, "model": model} if setting.how == "method" else {"model": model} if setting.how.endswith("again") else {}
    what = {**content(setting), "scale": scale, "kind": kind, "world": world, **rest}
    if not finished:
        what.pop("colour_fix", None)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


LANCZOS = Setting("Lanczos", "baselines", how="lanczos", full=True)
TRUTH = Setting("truth", "baselines", how="truth", full=True)
BASELINES = (
    LANCZOS,
    Setting("Lanczos, autoencoded", "baselines", how="lanczos again", full=True),
    Setting("truth, autoencoded", "baselines", how="truth again", full=True),
    TRUTH,
)
PUBLISHED = PRESETS["Published"]
COMPARED = ("baselines", "presets")  # groups that a second model is measured in

# What the questions are asked on: the windows alone, once over the last 10 steps of the schedule, from the enlarged pixels, colours fixed.
WINDOWS = Options(method="multidiffusion", matching=0.0, gamma=0.0, phases="direct", colour_fix=0.25)
SHARE, STEPS = 0.45, 10
# APT over DemoFusion in the same place.
APT = replace(WINDOWS, method="demofusion", matching=1.0)
STARTS = (0.45, 0.4, 0.5, 0.35, 0.3, 0.2, 0.6)
COLOURS = (0.25, 0.0, 0.35, 0.5, 1.0, 2.0, 4.0, 8.0)


def _from(share: float, steps: int = STEPS) -> Schedule:
    """So many steps over the last share of the schedule."""
    return Schedule(round(steps / share), share)


def _rows(group: str, ground: Options, beside: str, ways: Mapping[str, Mapping[str, Any]], schedule: Schedule | None = None, **given: Any) -> list[Setting]:
    return [Setting(name, group, replace(ground, **changes), schedule or _from(SHARE), beside=beside, **given) for name, changes in ways.items()]


def _start() -> list[Setting]:
    """Where and when a phase starts: from the pixels or from latents, and how far back in the schedule, always in 10 steps."""
    grounds = {
        "pixels": (WINDOWS, STARTS),
        "pixels, colours free": (replace(WINDOWS, colour_fix=0.0), (0.2, 0.4, 0.6)),
        "latents": (replace(WINDOWS, upscaler="latent"), (0.2, 0.4, 0.6)),
    }
    return [
        Setting(f"from {where}, {share:g}", "start", ground, _from(share), beside="from pixels, 0.4")
        for where, (ground, shares) in grounds.items()
        for share in shares
    ]


def _filter() -> list[Setting]:
    return _rows("filter", WINDOWS, "lanczos", {name: {"upscaler": name} for name in ("lanczos", "bicubic", "latent")})


def _matching() -> list[Setting]:
    """Statistical Matching where interpolation shifts the latent's statistics, and where it does not."""
    grounds = {"pixels": WINDOWS, "latents": replace(WINDOWS, upscaler="latent")}
    ways: dict[str, dict[str, Any]] = {"plain": {}, "matched": {"matching": 1.0}}
    return [
        Setting(f"from {where}, {name}", "matching", replace(ground, **on), _from(SHARE), beside=f"from {where}, plain")
        for where, ground in grounds.items()
        for name, on in ways.items()
    ]


def _paths() -> list[Setting]:
    """What each part of DemoFusion and AccDiffusion adds to the windows."""
    demofusion = replace(WINDOWS, method="demofusion", skip_residual=False, reanchor="off")
    ways: dict[str, dict[str, Any]] = {
        "windows alone": {"method": "multidiffusion"},
        "+ dilated path": {},
        "+ dilated path, residual": {"skip_residual": True},
        "+ dilated path, matching": {"matching": 1.0},
        "+ dilated path, re-anchoring": {"reanchor": "on"},
        "+ dilated path, matching, re-anchoring": {"matching": 1.0, "reanchor": "on"},
        "+ all of them": {"matching": 1.0, "reanchor": "on", "skip_residual": True},
        "AccDiffusion, all of them": {"method": "accdiffusion", "matching": 1.0, "reanchor": "on", "skip_residual": True},
    }
    return _rows("paths", demofusion, "windows alone", ways)


def _apt() -> list[Setting]:
    """APT in this regime: where it starts, in how many steps and phases, over which base method."""
    rows = [Setting(f"APT from {share:g}", "apt", APT, _from(share)) for share in (0.45, 0.35, 0.4, 0.5, 0.55, 0.6)]
    rows += [Setting(f"APT from {share:g}, {steps} steps", "apt", APT, _from(share, steps)) for share, steps in ((0.45, 6),)]
    ways: dict[str, dict[str, Any]] = {
        "matched windows": {"method": "multidiffusion"},
        "APT over AccDiffusion": {"method": "accdiffusion"},
        "APT, two phases": {"phases": "double"},
        "APT, no residual": {"skip_residual": False},
        "APT, half matched": {"matching": 0.5},
        "APT, tolerance 0": {"tolerance": 0.0},
        "APT, dilated path, exponent 0.3": {"dilated_decay": 0.3},
        "APT, from latents": {"upscaler": "latent"},
    }
    rows += _rows("apt", APT, "", ways)
    return [replace(row, beside="APT from 0.45") for row in rows]


def _colour() -> list[Setting]:
    return _rows("colour", APT, "off", {f"{width:g} pixels" if width else "off": {"colour_fix": width} for width in COLOURS})


def _steps() -> list[Setting]:
    return [Setting(f"{steps} steps", "steps", WINDOWS, _from(SHARE, steps), beside="10 steps") for steps in (4, 6, 10, 16)]


def _phases() -> list[Setting]:
    """One phase of so many steps against two, and for as many evaluations."""
    made = _rows("phases", WINDOWS, "direct", {"direct": {}, "double": {"phases": "double"}}, scales=(4,))
    return made + _rows("phases", WINDOWS, "direct", {"double, from 0.3": {"phases": "double"}}, Schedule(33, 0.3), scales=(4,))


def _gamma() -> list[Setting]:
    """Scale-aware Scheduling: a positive exponent starts the higher in the noise the larger the picture. Starts that are alike at 2x, and two phases."""
    pairs = ((0.35, 0.0), (0.25, 1.0), (0.3, 0.5), (0.3, 0.75), (0.28, 1.0))
    rows = [Setting(f"APT from {share:g}, gamma {gamma:g}", "gamma", replace(APT, gamma=gamma), _from(share)) for share, gamma in pairs]
    ground, low = replace(APT, gamma=1.0), _from(0.25)
    ways: dict[str, tuple[dict[str, Any], Schedule]] = {
        "windows alone, 6 steps": ({"method": "multidiffusion", "matching": 0.0}, replace(low, steps=24)),
        "APT, 6 steps": ({}, replace(low, steps=24)),
        "APT, two phases": ({"phases": "double"}, low),
        "APT, two phases, 16 steps": ({"phases": "double"}, replace(low, steps=64)),
    }
    rows += [Setting(f"{name}, from 0.25, gamma 1", "gamma", replace(ground, **changes), schedule) for name, (changes, schedule) in ways.items()]
    return [replace(row, beside="APT from 0.35, gamma 0") for row in rows]


def _samplers() -> list[Setting]:
    runs = {
        "DPM++ 2M, Karras": ("dpmpp_2m", "karras"),
        "Euler, Karras": ("euler", "karras"),
        "Euler, normal": ("euler", "normal"),
        "Euler a, Karras": ("euler_ancestral", "karras"),
    }
    ground = _from(SHARE)
    made = [
        Setting(name, "samplers", WINDOWS, replace(ground, sampler=sampler, spacing=spacing), beside="DPM++ 2M, Karras")
        for name, (sampler, spacing) in runs.items()
    ]
    return [*made, Setting("guidance 1.5", "samplers", WINDOWS, ground, guidance=1.5, beside="DPM++ 2M, Karras")]


def _presets() -> list[Setting]:
    return [Setting(name, "presets", made.options, made.schedule, full=True) for name, made in PRESETS.items() if name != "Published"]


def _published() -> list[Setting]:
    """The base methods as published."""
    return [
        Setting("DemoFusion as published", "published", PUBLISHED.options, PUBLISHED.schedule),
        Setting("AccDiffusion as published", "published", replace(PUBLISHED.options, method="accdiffusion"), PUBLISHED.schedule),
    ]


def groups() -> dict[str, list[Setting]]:
    """Every group's settings, the most useful group first."""
    made = [
        list(BASELINES),
        _presets(),
        _start(),
        _apt(),
        _paths(),
        _matching(),
        _filter(),
        _colour(),
        _phases(),
        _steps(),
        _gamma(),
        _samplers(),
        _published(),
    ]
    return {rows[0].group: rows for rows in made}


def all_settings(names: tuple[str, ...] = ()) -> list[Setting]:
    """The settings of the named groups, or of all. The baselines are always among them: nothing can be read without them.

    Raises:
        ValueError: for a group that does not exist.
    """
    known = groups()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"group {unknown[0]!r} does not exist; use some of {', '.join(known)}")
    return [setting for name, rows in known.items() if not names or name in names or name == "baselines" for setting in rows]
