"""Recorded runs of the published DemoFusion and AccDiffusion loops: what is in a file, and what follows from its options.

Everything that can be derived is derived, whether the file holds it or not, so that a file may leave it out; where it is there,
the replay compares the two.
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ext.core.windows import Window, cover

__all__ = ["OWN", "Golden", "find_cases", "why_not_a_case"]

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "tests" / "golden"
VAE_FACTOR = 8
TRAINING_STEPS = 1000

# What the two published pipelines do where a call leaves an option out.
DEFAULTS: dict[str, Any] = {
    "sched": "ddim",
    "dtype": "torch.float32",
    "image_lr": False,
    "num_inference_steps": 50,
    "denoising_end": None,
    "guidance_scale": 5.0,
    "guidance_rescale": 0.0,
    "eta": 0.0,
    "view_batch_size": 16,
    "stride": 64,
    "cosine_scale_1": 3.0,
    "cosine_scale_2": 1.0,
    "cosine_scale_3": 1.0,
    "sigma": 1.0,
    "debug": False,
    "multi_guidance_scale": 7.5,
    "use_guassian": True,
    "use_multidiffusion": True,
    "use_dilated_sampling": True,
    "use_skip_residual": True,
    "use_progressive_upscaling": True,
    "shuffle": False,
    "use_md_prompt": False,
    "upscale_mode": "bicubic_latent",
    "original_size": None,
    "target_size": None,
    "crops_coords_top_left": (0, 0),
    "sample_size": 16,
}
# DemoFusion's pipeline knows none of these switches.
ACCDIFFUSION_ONLY = {
    "debug",
    "multi_guidance_scale",
    "use_guassian",
    "use_multidiffusion",
    "use_dilated_sampling",
    "use_skip_residual",
    "use_progressive_upscaling",
    "shuffle",
    "use_md_prompt",
    "upscale_mode",
}
# They only say how the numbers in the file were drawn, what was done with the result, or how large it is, which the noise says too.
WITHOUT_EFFECT = {"kind", "seed", "unet_seed", "unet_calls", "count_min", "count_max", "lowvram", "save_attention_map"}
WITHOUT_EFFECT |= {"prompt", "prompt_2", "negative_prompt", "cross_attention_kwargs", "c", "attn_res", "num_images_per_prompt"}
WITHOUT_EFFECT |= {"width", "height", "multi_decoder", "output_type", "callback_steps", "result_path", "show_image", "return_dict"}


def find_cases() -> list[Path]:
    """Every npz of the folder that APT_GOLDEN names (shared/golden beside the repository when it is unset), and always those of tests/golden."""
    beside = ROOT.parent / "shared" / "golden"
    named = os.environ.get("APT_GOLDEN")
    folder = Path(named) if named else beside if beside.is_dir() else OWN
    if not folder.is_dir():
        raise FileNotFoundError(f"APT_GOLDEN names {str(folder)!r}, which is not a folder")
    own = sorted(OWN.glob("*.npz"))
    known = {path.name: path.read_bytes() for path in own}
    return own + [path for path in sorted(folder.glob("*.npz")) if known.get(path.name) != path.read_bytes()]


def why_not_a_case(path: Path) -> str | None:
    """A reason where the file is no recorded sampling run, None where it is one."""
    with np.load(path) as file:
        names = set(file.files)
    if {"A_maps", "A_tokens"} <= names:
        return "is no sampling case: its masks and prompts are compared in core/test_words.py"
    missing = [name for name in ("options", "unet_W1") if name not in names]
    return f"not a sampling case: it has no {' and no '.join(missing)}" if missing else None


class Golden:
    """One recorded run.

    Attributes:
        data: the arrays of the file, by name. `options`: the pipeline's call options.
        dtype: what it was recorded in.
    """

    def __init__(self, path: Path):
        self.name = path.stem
        with np.load(path) as file:
            self.data: dict[str, np.ndarray] = {name: file[name] for name in file.files if name != "options"}
            self.options: dict[str, Any] = json.loads(str(file["options"]))
        self.accdiffusion = self.options.get("kind", "demofusion") == "accdiffusion"
        self.dtype: torch.dtype = getattr(torch, str(self.option("dtype")).removeprefix("torch."))

    def option(self, name: str) -> Any:
        if name in ACCDIFFUSION_ONLY and not self.accdiffusion:
            return DEFAULTS[name]
        value = self.options.get(name)
        return DEFAULTS[name] if value is None else value

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.data[name]).to(self.dtype)

    def latent(self, name: str) -> Tensor:
        """(4, H, W) of the file as (1, 4, H, W)."""
        return self.tensor(name)[None]

    @property
    def unknown_options(self) -> list[str]:
        """Options that the replay has never heard of: it ignores them, and a failure names them."""
        return sorted(set(self.options) - set(DEFAULTS) - WITHOUT_EFFECT)

    @property
    def unsupported(self) -> str | None:
        """Why the run cannot be replayed, naming the option; None where it can."""
        if self.option("sched") not in ("ddim", "euler", "eulerfixed"):
            return f"sched={self.option('sched')!r}: only DDIM and Euler are rebuilt"
        if self.option("eta") > 0 and self.option("sched") == "ddim":
            return f"eta={self.option('eta')}: the loop draws fresh noise for every view, which is not in the file and which the core does not do"
        if self.option("use_md_prompt"):
            return "use_md_prompt: prompts per window are not supported yet"
        if self.option("upscale_mode") != "bicubic_latent":
            return f"upscale_mode={self.option('upscale_mode')!r}: only bicubic_latent exists"
        if self.dtype not in (torch.float32, torch.float64):
            return f"dtype={self.option('dtype')}: the rounding of the recording itself is larger than the tolerance"
        if not (self.option("use_multidiffusion") or self.option("use_dilated_sampling")):
            return "use_multidiffusion and use_dilated_sampling are both off: no path is left, and the loop itself gives zeros"
        if self.option("use_multidiffusion") and any(bool((self.counts(s) == 0).any()) for s in self.phases):
            return f"stride={self.option('stride')}: its windows leave pixels uncovered, which the core refuses"
        return None

    @property
    def guided(self) -> bool:
        """Whether the loop uses the negative prompt at all: `guidance_scale` alone decides, for local windows with a scale of their own too."""
        return bool(self.option("guidance_scale") > 1)

    # -- noise levels -------------------------------------------------------------------------------------------------------------

    @property
    def ddim(self) -> bool:
        return bool(self.option("sched") == "ddim")

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(1000,) float32, SDXL's "scaled_linear" table."""
        if "alphas_cumprod" in self.data:
            return torch.from_numpy(self.data["alphas_cumprod"])
        return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float32) ** 2, 0)

    @cached_property
    def timesteps(self) -> list[int]:
        """Descending, "leading" spacing with an offset of 1; `denoising_end` drops the last ones."""
        count = 1 if self.option("debug") else int(self.option("num_inference_steps"))
        every = [k * (TRAINING_STEPS // count) + 1 for k in reversed(range(count))]
        end = self.option("denoising_end")
        return every if end is None or not 0 < end < 1 else [t for t in every if t >= round(TRAINING_STEPS * (1 - end))]

    @property
    def prev_timesteps(self) -> list[int]:
        count = 1 if self.option("debug") else int(self.option("num_inference_steps"))
        return [t - TRAINING_STEPS // count for t in self.timesteps]

    @property
    def a_t(self) -> Tensor:
        return self.alphas_cumprod[torch.tensor(self.timesteps)].double()

    @property
    def a_prev(self) -> Tensor:
        """(n,) alpha_bar after each step. DDIM's last one is alphas_cumprod[0] and not 1."""
        return self.alphas_cumprod[torch.tensor(self.prev_timesteps).clamp(min=0)].double()

    @property
    def sigmas(self) -> Tensor:
        """(n + 1,) float64 VE noise levels."""
        last = self.a_prev[-1] if self.ddim or self.prev_timesteps[-1] > 0 else torch.ones((), dtype=torch.float64)
        a = torch.cat([self.a_t, last[None]])
        return ((1 - a) / a).sqrt()

    def scales(self) -> Tensor:
        """(n + 1,) what a VE latent at each level is multiplied by to be in the file's own scale: VP for DDIM, VE for Euler."""
        return (1 + self.sigmas**2).rsqrt() if self.ddim else torch.ones_like(self.sigmas)

    # -- phases and views ---------------------------------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> list[int]:
        """Scale numbers s of the upscaling phases: those whose noise is in the file, which have to be those that the options ask for."""
        found = sorted(int(m[1]) for m in (re.fullmatch(r"p(\d+)_noise", name) for name in self.data) if m)
        last = int(max(self.options["height"], self.options["width"]) / (self.option("sample_size") * VAE_FACTOR))
        first = (1 if self.option("image_lr") else 2) if self.option("use_progressive_upscaling") else last
        assert found == list(range(first, last + 1)), f"the file has noise for the phases {found}, its options make phases {first} to {last}"
        return found

    @property
    def jitter_range(self) -> int:
        return int((self.option("sample_size") - self.option("stride")) // 4)

    def size(self, s: int) -> tuple[int, int]:
        rows, columns = self.data[f"p{s}_noise"].shape[-2:]
        return rows, columns

    def windows(self, s: int, step: int) -> list[Window]:
        """The step's local windows in the coordinates of the unpadded latent. A view that reaches past the padded latent ends with it."""
        jitter = self.jitter_range
        rows, columns = (n + 2 * jitter for n in self.size(s))
        return [
            Window(top - jitter, left - jitter, min(bottom, rows) - top, min(right, columns) - left)
            for top, bottom, left, right in self.data[f"p{s}_views"][step].tolist()
        ]

    def counts(self, s: int) -> Tensor:
        """(n, H, W): how many local windows see each pixel."""
        return torch.stack([cover(self.size(s), self.windows(s, step)) for step in range(len(self.timesteps))])

    def batches(self, phase: int) -> tuple[int, int]:
        """Model calls of the published loop in a step of the phase with that index: for local windows and for dilated views."""
        s, most = self.phases[phase], int(self.option("view_batch_size"))
        local = -(-self.data[f"p{s}_views"].shape[1] // most) if self.option("use_multidiffusion") else 0
        return local, -(-s * s // most) if self.option("use_dilated_sampling") else 0

    def input_level(self, phase: int, step: int, call: int, recorded: bool = True) -> int:
        """Index of the sigma that Euler's input scaling used for a model call, the flaw of the loop as published included.

        Every solver step moves the scheduler's index on by one, and only the solver step itself puts it back in place, so that the
        scaling of a step's second and later batches already uses the next step's sigma, and a phase's very first the end of the list.

        Args:
            phase: index among the phases, -1 for the base phase. `call`: number of the batch within the step.
            recorded: go by the file's list of model calls where it has one, and not by the rule.
        """
        n = len(self.timesteps)
        if recorded and "scale_calls" in self.data and phase >= 0:
            before = sum(sum(self.batches(p)) for p in range(phase)) * n + (0 if self.option("image_lr") else n)
            return int(self.data["scale_calls"][before + step * sum(self.batches(phase)) + call, 1])
        if self.option("sched") != "euler" or phase < 0:
            return step
        fresh = phase == 0 and self.option("image_lr")
        return step + 1 if call else step if step or fresh else n
