"""Which of the host's samplers can carry patch fusion, for which checkpoints, and how often they call their model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from apt_ext.core.call_levels import Knobs, call_levels
from apt_ext.core.clock import CALLS_PER_STEP, FREE_SAMPLERS, Clock, LevelClock, StepClock, check_steps, step_calls
from apt_ext.webui.run.coordinates import Coordinates, FlowCoordinates, SigmaCoordinates, TimestepCoordinates

__all__ = [
    "REMEDY",
    "check_flow_sampler",
    "check_sampler",
    "chooses_levels",
    "clock_of",
    "coordinates_of",
    "knobs_of",
    "levels_of",
    "model_calls",
    "sampler_key",
]

# The host's own samplers beside k-diffusion's, with their model calls per step; of those that choose their own levels, the calls to expect.
SIGMA_SAMPLERS = CALLS_PER_STEP | {"lcm": 1, "heunpp2": 3, "ipndm": 1, "ipndm_v": 1, "deis": 1} | FREE_SAMPLERS | {"restart_sampler": 2}
TIMESTEP_SAMPLERS = ("ddim", "ddim_cfgpp", "plms", "unipc")
FREE = {
    "dpm_fast": "chooses its own noise levels",
    "dpm_adaptive": "chooses its own noise levels",
    "restart_sampler": "goes back to higher noise by itself",
    "unipc": "corrects each step from a state of its own",
}
"""Samplers whose steps are not the phase's: what they do instead."""
FLOW_SAMPLERS = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m", "heunpp2", "ipndm", "ipndm_v", "deis")
"""Those that are right for rectified flow wherever they are given its times: they add no noise, and follow dx / dt = (x - z) / t, which is the flow's own
equation as it is k-diffusion's. Noise is another matter: added as to z + sigma n, it finds the picture weaker than it takes it for."""
CHURNED = ("euler", "heun", "dpm_2")  # those that the hosts hand their sigma churn on to
DOWN = ("dpm_2_ancestral", "dpmpp_2s_ancestral")  # with an eta above 1 they leave out the second call of some steps
UNIPC_ORDER = 3  # the host's default; it takes no fewer steps
REMEDY = "use Euler a, DPM++ 2M, DDIM or another one"
FLOW_REMEDY = "use Euler, Heun or DPM++ 2M"


def sampler_key(function: Any) -> str:
    """The name of a sampler's function, a string or a callable as the host keeps it, without "sample_"."""
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    return str(name).removeprefix("sample_")


def check_sampler(label: str, function: Any, residual: bool) -> None:
    """Make sure that a sampler can carry patch fusion.

    Args:
        residual: whether the job mixes the skip residual into the sampler's state.

    Raises:
        ValueError: where it cannot, or is not known.
    """
    key = sampler_key(function)
    if key not in SIGMA_SAMPLERS and key not in TIMESTEP_SAMPLERS:
        raise ValueError(f"sampler {label!r} is not one that this version knows; {REMEDY}")
    if key in FREE and residual:
        raise ValueError(f"sampler {label!r} {FREE[key]}, where the skip residual cannot follow; turn the skip residual off, or {REMEDY}")


def check_flow_sampler(label: str, function: Any, churn: float, own: Collection[str]) -> None:
    """Make sure that a sampler that `check_sampler` let pass is right for rectified flow.

    Args:
        churn: noise that the job lets it add. `own`: the host's samplers that add noise as the loaded checkpoint needs it.

    Raises:
        ValueError: where it is not.
    """
    key = sampler_key(function)
    if key in TIMESTEP_SAMPLERS:
        raise ValueError(f"sampler {label!r} steps through the timesteps of a schedule that this checkpoint has not got; {FLOW_REMEDY}")
    if key not in FLOW_SAMPLERS and key not in own:
        raise ValueError(f"sampler {label!r} adds noise in proportions that are wrong for this checkpoint, of rectified flow; {FLOW_REMEDY}")
    if churn and key in CHURNED:
        raise ValueError(f"sigma churn {churn:g} adds noise in proportions that are wrong for this checkpoint, of rectified flow; set it to 0")


def knobs_of(label: str, function: Any, eta: float, churn: tuple[float, float, float], flow: bool) -> Knobs:
    """What the host hands a sampler that moves noise levels. `churn`: sigma churn, tmin and tmax.

    Raises:
        ValueError: for an eta that makes the sampler's steps unlike one another.
    """
    key = sampler_key(function)
    if key in DOWN and not 0 <= eta <= 1:
        raise ValueError(f"eta {eta:g} cannot be followed with sampler {label!r}; use one from 0 to 1")
    return Knobs(eta, flow, *churn) if key in CHURNED else Knobs(eta, flow)


def levels_of(function: Any, knobs: Knobs, coordinates: Coordinates, sigmas: Sequence[float]) -> list[list[float]]:
    """The noise levels of the model calls of every step of a phase over these; of a sampler that `chooses_levels`, none are known."""
    key = sampler_key(function)
    if key == "plms":  # it looks at the second step's level once, to begin with
        return [[sigma, sigmas[1]] if step == 0 else [sigma] for step, sigma in enumerate(sigmas[:-1])]
    return coordinates.inner(list(sigmas), lambda levels: call_levels(key, levels, knobs))


def chooses_levels(function: Any) -> bool:
    """Whether a sampler's steps are not the phase's, so that their number can only be estimated."""
    return sampler_key(function) in FREE


def model_calls(label: str, function: Any, sigmas: Sequence[float]) -> list[int]:
    """Model calls of every step of a run over these noise levels; those to expect, for samplers whose steps are not the phase's.

    Raises:
        ValueError: where the sampler needs more steps.
    """
    key, steps = sampler_key(function), len(sigmas) - 1
    least = {"unipc": UNIPC_ORDER, "dpm_fast": 2, "dpm_adaptive": 2}.get(key, 1)
    if steps < least:
        wanted = "no step to run" if least == 1 else f"{steps} steps to run, and needs {least}"
        raise ValueError(f"sampler {label!r} gets {wanted}; use more steps or a higher denoising strength")
    if key in TIMESTEP_SAMPLERS:
        return [2 if key == "plms" and step == 0 else 1 for step in range(steps)]
    if key in CALLS_PER_STEP:
        check_steps(key, steps)
    if key == "heunpp2":  # it looks two steps ahead, as far as there are two
        return [min(SIGMA_SAMPLERS[key], steps - step) for step in range(steps)]
    return step_calls(sigmas, SIGMA_SAMPLERS[key])


def clock_of(function: Any, sigmas: Sequence[float], calls: Sequence[int]) -> Clock:
    """What tells the step of a model call: for samplers whose steps are not the phase's, the noise level."""
    return LevelClock(sigmas) if chooses_levels(function) else StepClock(sigmas, calls)


def coordinates_of(function: Any, alphas_cumprod: Tensor, whole: bool = False, flow: bool = False) -> Coordinates:
    """The coordinates of a sampler that `check_sampler` let pass. `whole`: see `TimestepCoordinates`. `flow`: whether the checkpoint is of rectified flow."""
    key = sampler_key(function)
    if key in TIMESTEP_SAMPLERS:
        return TimestepCoordinates(alphas_cumprod, to_the_end=key == "unipc", whole=whole)
    return FlowCoordinates() if flow else SigmaCoordinates()
