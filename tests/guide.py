"""The guide's tables and the translators' template, made from the code that they describe: `python -m tests.guide` writes them into docs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from apt_ext.options import PRESETS
from apt_ext.webui.page.controls import (
    ACCORDION,
    COLOUR_NOTE,
    CONTROLS,
    LATENT_NOTE,
    LEVELS_NOTE,
    SCALE,
    SIZE_NOTE,
    STRENGTH,
    Control,
    preset_sentences,
)
from apt_ext.webui.page.request import preset_host_values
from bench.tables import put

__all__ = ["GUIDE", "TEMPLATE", "tables", "template"]

GUIDE = Path(__file__).parents[1] / "docs" / "webui.md"
TEMPLATE = GUIDE.with_name("localization.json")
NOTES = (LATENT_NOTE, COLOUR_NOTE, LEVELS_NOTE, SIZE_NOTE)
SCRIPT = GUIDE.parents[1] / "javascript" / "apt.js"
OTHER_TEXTS = ("Strength", STRENGTH, "Settings", ACCORDION, "APT upscale", *preset_sentences().values(), *NOTES)
PANEL_TEXT = re.compile(r'<(span|th)>([^<>$]+)</\1>|error: ()"([^"]+)"')
OTHERS = {"phases": "or ratios such as 1.5,2,4", "upscaler": "or one of the host's", "window": "or pixels such as 640x512"}
UPSCALERS = {"lanczos": "Lanczos", "latent": "Latent (bicubic)"}


def _values(control: Control) -> str:
    if isinstance(control.default, bool):
        return "true, false"
    if control.choices:
        return ", ".join([*control.choices, *([OTHERS[control.name]] if control.free else [])])
    if isinstance(control.default, str):
        return "lines of text"
    return f"{control.least:g} to {control.most:g}"


def _settings() -> str:
    rows = [
        f"| {number} | `{control.name}` | {str(control.default).lower() if isinstance(control.default, bool) else control.default} "
        f"| {_values(control)} | {control.help[0].upper()}{control.help[1:]} |"
        for number, control in enumerate(CONTROLS, 1)
    ]
    return "\n".join(["| | name | default | values | |", "|-|-|-|-|-|", *rows])


def _presets() -> str:
    wanted = {name: preset_host_values(name) for name in PRESETS}
    rows = [f"| {name} | {v['steps']} | {v['hires_steps']} | {v['denoising']:g} | {UPSCALERS[v['upscaler']]} |" for name, v in wanted.items()]
    head = "| preset | img2img: sampling steps | txt2img: hires steps | denoising strength | txt2img: Upscaler |"
    return "\n".join([head, "|-|-|-|-|-|", *rows])


def tables() -> list[str]:
    """Every table as it has to stand in the guide, its first line and its last included."""
    return [_settings(), _presets()]


def template() -> str:
    """Every text of APT's on the page, as the host's `localizations` have them: text -> its translation, which is empty as yet."""
    shown = [*(text for control in (SCALE, *CONTROLS) for text in (control.label, "" if control.name == "preset" else control.help)), *OTHER_TEXTS]
    shown += [said.group(2) or said.group(4) for said in PANEL_TEXT.finditer(SCRIPT.read_text(encoding="utf-8"))]
    shown += [choice for control in CONTROLS for choice in control.choices]
    return json.dumps({text: "" for text in shown if text}, indent=0, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TEMPLATE.write_text(template())
    text = GUIDE.read_text()
    for table in tables():
        text = put(table, text)
    GUIDE.write_text(text)
