"""The grid of the benchmark as data: every setting that is measured, in groups that each answer one question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from apt_ext.options import PRESETS, Options, blur_of, preset_options, published, reanchors
from bench.speed.plan import DEMOFUSION

__all__ = ["BASELINES", "REFERENCE", "RENDER", "TRUTH", "Setting", "all_settings", "groups", "key_of", "reference_of"]


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark.

    Attributes:
        name, group: where it is shown; the same content under two names is run once.
        how: "windows" runs the method; "whole" lets the model denoise the large latent in one piece, which is plain img2img. The
            others run nothing: "bicubic" decodes the enlarged base latent, "truth" is the autoencoded true picture, "render" the true
            picture itself.
        scales: the linear factors that it is measured at.
        guided_above: the noise level below which guidance is left out.
        beside: the row of its group that the group's question compares it with. Every row is compared with DemoFusion as well.
    """

    name: str
    group: str
    options: Options = dataclasses.field(default_factory=Options)
    sampler: str = "euler"
    guidance: float = 1.0
    schedule: str = "normal"
    how: str = "windows"
    scales: tuple[int, ...] = (2,)
    guided_above: float = 0.0
    beside: str = ""


def content(setting: Setting) -> dict[str, Any]:
    """What makes a setting's pictures: not its names, nor what the embedded model does not see, and with "auto" resolved."""
    if setting.how in ("bicubic", "truth", "render"):
        return {"how": setting.how}
    options = dataclasses.asdict(setting.options)
    del options["window_batch"], options["words"]
    options["blur"] = float(blur_of(setting.options))
    if options["reanchor"] == "auto":
        options["reanchor"] = "on" if reanchors(setting.options) else "off"
    options = {name: float(value) if isinstance(value, (int, float)) else value for name, value in options.items()}
    if setting.guided_above:
        options["guided_above"] = setting.guided_above
    return {"how": setting.how, "sampler": setting.sampler, "guidance": float(setting.guidance), "schedule": setting.schedule, **options}


def key_of(setting: Setting, scale: int, base: str, model: str, seed: int) -> str:
    """A name for one run's results. Pictures are numbered alike whatever their count, so the count is no part of it and a larger one adds to the smaller."""
    # What is not sampled has no seed.
    seed = seed if setting.how in ("windows", "whole") else 0
    what = {**content(setting), "scale": scale, "base": base, "model": model, "seed": seed}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


ALL_SCALES = (2, 3, 4, 8)
TRUTH = Setting("truth, autoencoded", "baselines", how="truth", scales=ALL_SCALES)
RENDER = Setting("truth, as rendered", "baselines", how="render", scales=ALL_SCALES)
BASELINES = (TRUTH, RENDER, Setting("bicubic latent", "baselines", how="bicubic", scales=ALL_SCALES))

# What the single settings are measured on: DemoFusion's phases and windows, whatever this project's own defaults are.
GROUND = Options(phases="progressive", overlap=0.5, jitter=1.0, feather=0.0, tolerance=0.005)
FULL = replace(GROUND, matching=0.0, shortcut=1.0)  # without any part of APT, over the whole schedule
MATCHED = replace(FULL, matching=1.0)
APT = replace(GROUND, matching=1.0, shortcut=0.6)


def _at_4x(name: str, group: str, beside: str = "", **changes: Any) -> Setting:
    """What the questions about large pictures are measured on: two phases of 18 steps, windows overlapping by a quarter."""
    ground = replace(APT, phases="double", overlap=0.25)
    return Setting(name, group, replace(ground, **changes), "dpmpp_2m", schedule="karras", scales=(4,), beside=beside)


# Beside everything else that the other questions found to help.
REFINED: dict[str, Any] = {"reanchor": "on", "feather": 0.5, "tolerance": 0.1}


def _apart(setting: Setting) -> Setting:
    """Re-anchoring left to "auto" is off beside matching here, so that each of the two is measured by itself."""
    options = setting.options
    if options.reanchor != "auto":
        return setting
    return replace(setting, options=replace(options, reanchor="on" if options.matching == 0 and reanchors(options) else "off"))


def _methods() -> list[Setting]:
    variants: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "as published": ({}, (2, 3, 4)),
        "+ matching": ({"matching": 1.0}, (2, 3, 4)),
        "+ schedule": ({"gamma": -0.5}, (2,)),
        "+ matching, schedule": ({"matching": 1.0, "gamma": -0.5}, (2,)),
        "+ matching, schedule, shortcut": ({"matching": 1.0, "gamma": -0.5, "shortcut": 0.6}, (2, 3, 4)),
        "+ matching, shortcut": ({"matching": 1.0, "shortcut": 0.6}, (2, 3, 4)),
    }
    bases = {
        "MultiDiffusion": Setting("", "methods", published(replace(GROUND, method="multidiffusion"))),
        "DemoFusion": Setting("", "methods", published(replace(GROUND, method="demofusion"))),
        "AccDiffusion": Setting("", "methods", published(replace(GROUND, method="accdiffusion"))),
        "plain img2img": Setting("", "methods", published(replace(GROUND, method="multidiffusion", phases="direct")), how="whole"),
    }
    return [
        replace(
            base,
            name=f"{name} {variant}",
            options=replace(base.options, **changes),
            scales=(2,) if base.how == "whole" else scales,
            beside=f"{name} as published",
        )
        for name, base in bases.items()
        for variant, (changes, scales) in variants.items()
    ]


def _anchoring() -> list[Setting]:
    cases = {"neither": (0.0, "off"), "matching": (1.0, "off"), "re-anchoring": (0.0, "on"), "both": (1.0, "on")}
    grounds = {"": FULL, ", shortcut 0.6": APT, ", AccDiffusion": replace(FULL, method="accdiffusion")}
    rows = [
        Setting(f"{name}{where}", "anchoring", replace(ground, matching=matching, reanchor=reanchor), beside=f"neither{where}")
        for where, ground in grounds.items()
        for name, (matching, reanchor) in cases.items()
    ]
    return rows + [_at_4x(f"{name}, at 4x", "anchoring", "matching, at 4x", reanchor=cases[name][1]) for name in ("matching", "both")]


def _shortcut() -> list[Setting]:
    # An exponent of 100 lets the residual's weight vanish within the first steps.
    residuals = {"": 3.0, ", no residual": 100.0}
    rows = [
        Setting(f"shortcut {share:g}{text}", "shortcut", replace(MATCHED, shortcut=share, residual=residual), beside="shortcut 1")
        for share in (1.0, 0.8, 0.6, 0.4)
        for text, residual in residuals.items()
    ]
    rows.append(Setting("18 steps, shortcut 1", "shortcut", replace(MATCHED, steps=18), beside="shortcut 1"))
    # The same 18 steps from different heights: what is left of the schedule is what they are spent on.
    return rows + [
        _at_4x(f"18 steps from {share:g}, at 4x", "shortcut", "18 steps from 0.6, at 4x", **REFINED, shortcut=share, steps=round(18 / share))
        for share in (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    ]


def _gamma() -> list[Setting]:
    rows = [
        Setting(f"gamma {gamma}, shortcut {share:g}", "gamma", replace(MATCHED, gamma=gamma, shortcut=share), beside=f"gamma 0.0, shortcut {share:g}")
        for share in (0.6, 1.0)
        for gamma in (-0.5, -0.25, 0.0, 0.25, 0.5, "auto")
    ]
    return rows + [_at_4x(f"gamma {gamma}, at 4x", "gamma", "gamma 0.0, at 4x", **REFINED, gamma=gamma) for gamma in (-0.25, -0.1, 0.0, 0.1, 0.25, "auto")]


def _matching() -> list[Setting]:
    return [
        Setting(f"matching {strength:g}{text}", "matching", replace(APT, matching=strength, reanchor=reanchor), beside=f"matching 0{text}")
        for reanchor, text in (("off", ""), ("on", ", re-anchored"))
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]


def _windows() -> list[Setting]:
    usual = "overlap 0.5, inside, jitter 1"
    rows = [
        Setting(f"overlap {overlap:g}, {border}, jitter {jitter:g}", "windows", replace(APT, overlap=overlap, border=border, jitter=jitter), beside=usual)
        for overlap in (0.0, 0.125, 0.25, 0.5)
        for border in ("inside", "over")
        for jitter in (0.0, 1.0)
    ]
    return [*rows, *(Setting(f"feather {feather:g}", "windows", replace(APT, feather=feather), beside=usual) for feather in (0.0, 0.5))]


def _seams() -> list[Setting]:
    """Ways to lay and to blend the windows where there are many of them."""
    ways: dict[str, dict[str, Any]] = {
        "overlap 0.25": {},
        "overlap 0.5": {"overlap": 0.5},
        "overlap 0.125": {"overlap": 0.125},
        "over the border": {"border": "over"},
        "over the border, overlap 0": {"border": "over", "overlap": 0.0},
        "feather 0.5": {"feather": 0.5},
    }
    return [_at_4x(name, "seams", "overlap 0.25", **changes) for name, changes in ways.items()]


def _tolerance() -> list[Setting]:
    return [Setting(f"tolerance {value:g}", "tolerance", replace(APT, tolerance=value), beside="tolerance 0") for value in (0.0, 0.005, 0.02, 0.05, 0.1, 0.2)]


def _dilated_every() -> list[Setting]:
    return [Setting(f"every {every}", "dilated every", replace(APT, dilated_every=every), beside="every 1") for every in (1, 2, 3, 4)]


def _phases() -> list[Setting]:
    policies = ("progressive", "double", "direct")
    rows = [_at_4x(f"50 steps, {policy}", "phases", "50 steps, progressive", steps=50, phases=policy) for policy in policies]
    return rows + [Setting(policy, "phases", replace(APT, phases=policy), scales=(3, 4), beside="progressive") for policy in policies]


def _samplers() -> list[Setting]:
    runs = (("euler", 30), ("dpmpp_2m", 30), ("dpmpp_2m", 20), ("dpmpp_2m", 15), ("dpmpp_2m", 12))
    return [Setting(f"{sampler}, {steps} steps", "samplers", replace(APT, steps=steps), sampler, beside="euler, 30 steps") for sampler, steps in runs]


def _guidance() -> list[Setting]:
    methods = {"DemoFusion": FULL, "APT": APT}
    rows = [
        Setting(f"{name}, guidance {g:g}", "guidance", options, guidance=g, beside=f"{name}, guidance 1")
        for name, options in methods.items()
        for g in (1.0, 1.5, 3.0)
    ]
    levels = (0.3, 1.0, 2.0)
    return rows + [Setting(f"APT, guidance 3 above {level:g}", "guidance", APT, guidance=3.0, guided_above=level, beside="APT, guidance 3") for level in levels]


def _presets() -> list[Setting]:
    made = {name: preset_options(name) for name in PRESETS}
    return [
        Setting("DemoFusion as published", "presets", DEMOFUSION, scales=(2, 3, 4)),
        *(Setting(name, "presets", options, sampler, schedule=schedule, scales=ALL_SCALES) for name, (options, sampler, schedule) in made.items()),
        Setting("MultiDiffusion", "presets", published(replace(GROUND, method="multidiffusion", steps=50)), scales=ALL_SCALES),
    ]


def _fast() -> list[Setting]:
    """Ways to stay under a tenth of DemoFusion's evaluations."""
    ways: dict[str, dict[str, Any]] = {
        "12 steps in 2 phases, dilated path every 2nd": {"steps": 20, "dilated_every": 2, "overlap": 0.125},
        "11 steps in 2 phases": {"steps": 18},
        "12 steps in 2 phases, shortcut 0.4": {"steps": 30, "shortcut": 0.4},
        "15 steps in 1 phase": {"steps": 25, "phases": "direct"},
    }
    return [_at_4x(name, "fast", **changes) for name, changes in ways.items()]


def groups() -> dict[str, list[Setting]]:
    """Every group's settings, the most useful group first."""
    made = [list(BASELINES), _presets(), _methods(), _phases(), _fast(), _gamma(), _shortcut(), _matching(), _anchoring()]
    made += [_dilated_every(), _tolerance(), _samplers(), _windows(), _seams(), _guidance()]
    return {rows[0].group: [_apart(row) if row.group != "presets" else row for row in rows] for rows in made}


def all_settings(names: tuple[str, ...] = ()) -> list[Setting]:
    """The settings of the named groups, or of all. The baselines are always among them: nothing can be read without the truth.

    Raises:
        ValueError: for a group that does not exist.
    """
    known = groups()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"group {unknown[0]!r} does not exist; use some of {', '.join(known)}")
    return [setting for name, rows in known.items() if not names or name in names or name == "baselines" for setting in rows]


REFERENCE = {"presets": Setting("DemoFusion as published", "presets", DEMOFUSION)}
PUBLISHED = _apart(Setting("DemoFusion as published", "methods", FULL))


def reference_of(setting: Setting) -> Setting:
    """DemoFusion as published, which a setting is compared with: its 50 steps for the presets, the same 30 steps for everything else."""
    return REFERENCE.get(setting.group, PUBLISHED)
