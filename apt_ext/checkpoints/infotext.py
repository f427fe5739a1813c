"""What is written into a picture, as the WebUI writes it, so that its PNG Info reads it and APT's fields come back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apt_ext import __version__
from apt_ext.options import infotext_key, settings

__all__ = ["infotext"]

SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
}
SPACINGS = {"karras": "Karras", "exponential": "Exponential", "normal": "Uniform"}


def _quoted(value: Any) -> str:
    """As the WebUI quotes what holds its own separators; a whole number is written as one, whichever way it was given."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text


def infotext(job: Any, pixels: tuple[int, int], model: str) -> str:
    """The prompt, the negative one and every setting, under the names that the WebUI has for them.

    Args:
        job: a `PromptJob`. `pixels`: (width, height) of the picture. `model`: the checkpoint's name.
    """
    own = job.schedule
    fields = {
        "Steps": own.steps,
        "Sampler": SAMPLERS.get(own.sampler, own.sampler),
        "Schedule type": SPACINGS[own.spacing],
        "CFG scale": job.guidance,
        "Seed": job.seed,
        "Size": f"{pixels[0]}x{pixels[1]}",
        "Model": Path(model).stem if model.endswith(".safetensors") else Path(model).name,
        "Denoising strength": own.strength,
        "APT scale": job.scale,
        **{infotext_key(name): getattr(job.options, name) for name in settings() if infotext_key(name)},
        "APT version": __version__,
    }
    if job.guided_above:
        fields["APT guided above"] = job.guided_above
    lines = [job.prompt, *([f"Negative prompt: {job.negative}"] if job.negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items())])
