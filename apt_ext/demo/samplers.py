"""k-diffusion's own samplers for the command line.

`import k_diffusion` pulls in everything that its training scripts use. The samplers need three of its modules, so these are
loaded by themselves, without the package's `__init__`; their code runs unchanged.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from apt_ext.core.clock import FREE_SAMPLERS, sampler_calls
from apt_ext.core.types import Sampler

__all__ = ["HIGHEST", "ensure_torchvision", "k_external", "k_sampling", "make_sampler", "make_sigmas"]

LOWEST, HIGHEST = 0.0291, 14.62
"""Just around Stable Diffusion's noise levels, 0.0292 to 14.6146, on whose schedule the presets' strengths were measured. Models with zero terminal SNR
and rectified flow go on to hundreds, where nothing of a picture is left."""


def ensure_torchvision() -> None:
    """Make `import torchvision` work beside a torch that its compiled half was not built for.

    k-diffusion uses only torchvision's picture functions; the import itself fails without the schemas of two operators.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


@cache
def _load(name: str) -> ModuleType:
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("k-diffusion is not installed; run: pip install --no-deps k-diffusion==0.1.1.post1")
        ensure_torchvision()
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return importlib.import_module(f"k_diffusion.{name}")


def k_sampling() -> ModuleType:
    """`k_diffusion.sampling`."""
    return _load("sampling")


def k_external() -> ModuleType:
    """`k_diffusion.external`: the wrappers that make a network a denoiser."""
    return _load("external")


def make_sigmas(spacing: str, steps: int, sigmas: Tensor) -> Tensor:
    """The whole noise schedule of a job.

    Args:
        spacing: a `Schedule`'s. `steps`: N. `sigmas`: (T,) the model's ascending noise levels.

    Returns:
        (N + 1,) descending noise levels, the last one 0: "normal" from the model's largest; "karras" and "exponential" within `LOWEST` and
        `HIGHEST`, so that a share of the steps begins at the same noise on every model.

    Raises:
        ValueError: for a spacing that does not exist.
    """
    k = k_sampling()
    low, high = max(float(sigmas[0]), LOWEST), min(float(sigmas[-1]), HIGHEST)
    if spacing == "karras":
        made = k.get_sigmas_karras(steps, low, high)
    elif spacing == "exponential":
        made = k.get_sigmas_exponential(steps, low, high)
    elif spacing == "normal":
        made = k_external().DiscreteSchedule(sigmas, quantize=False).get_sigmas(steps)
    else:
        raise ValueError(f"spacing {spacing!r} does not exist; use karras, normal or exponential")
    # exp and pow may land a rounding error above the largest level.
    return made.clamp(max=float(sigmas[-1]))


def _noise_per_sample(x: Tensor, seeds: list[int]) -> Callable[[Any, Any], Tensor]:
    """A noise source in k-diffusion's form for latents like x that draws every picture's noise from a generator of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda sigma, sigma_next: torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)


def make_sampler(name: str, seeds: list[int]) -> Sampler:
    """A sampler of `k_diffusion.sampling` with its noise drawn from `seeds`, one for each picture of the batch, and no bar of its own.

    Args:
        name: as there, without "sample_".

    Raises:
        ValueError: for one that does not exist.
    """
    sampler_calls(name, residual=False)
    k = k_sampling()
    function = getattr(k, f"sample_{name}")

    def sample(model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], callback: Callable[[dict[str, Any]], None]) -> Tensor:
        bound = partial(function, disable=True)
        if "noise_sampler" in inspect.signature(function).parameters:
            # The SDE solvers' noise is a Brownian path, whose increments must agree between nested intervals.
            brownian = name.endswith("_sde")
            noise = k.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seeds) if brownian else _noise_per_sample(x, seeds)
            bound = partial(bound, noise_sampler=noise)
        if name in FREE_SAMPLERS:
            lowest, highest = float(sigmas[sigmas > 0].min()), float(sigmas[0])
            number = {"n": len(sigmas) - 1} if name == "dpm_fast" else {}
            return bound(model, x, lowest, highest, **number, extra_args=extra_args, callback=callback)
        return bound(model, x, sigmas, extra_args=extra_args, callback=callback)

    return sample
