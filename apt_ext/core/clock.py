"""Which step a model call belongs to.

A sampler calls its model once or twice a step and does not say which call it is. Everything that must happen once per step
(the skip residual, new window positions) hangs on telling them apart, and the noise level alone does not tell: Heun's inner
evaluation already stands at the next step's sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["CALLS_PER_STEP", "FREE_SAMPLERS", "Clock", "LevelClock", "StepClock", "check_steps", "sampler_calls", "step_calls"]

CALLS_PER_STEP: dict[str, int] = {
    "euler": 1,
    "euler_ancestral": 1,
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "lms": 1,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m": 1,
    "dpmpp_2m_sde": 1,
    "dpmpp_3m_sde": 1,
}
"""Model calls of a step, for every sampler of `k_diffusion.sampling` that takes a list of sigmas. A last step to sigma 0 always takes one."""

FREE_SAMPLERS: dict[str, int] = {"dpm_fast": 1, "dpm_adaptive": 3}
"""Samplers that choose their own noise levels between the first and the last of a phase, with the model calls to expect for each of its steps. Nothing can
be written into their state, so they go without the skip residual."""

CHURN = 2**0.5  # k-diffusion's s_churn raises a step's first noise level by at most this factor
ROUNDING = 4e-3  # samplers hand sigmas on in the latents' precision, and bfloat16 rounds by up to 2e-3
LEAST_STEPS = {"dpmpp_2m_sde": 2, "dpmpp_3m_sde": 2}  # with a single step to 0 they fail inside k-diffusion


def sampler_calls(sampler: str, residual: bool = True) -> int:
    """Model calls per step of a sampler, named as in `k_diffusion.sampling` without "sample_"; those to expect, for `FREE_SAMPLERS`.

    Args:
        residual: whether the job mixes the skip residual into the sampler's state.

    Raises:
        ValueError: for a sampler that is not known, or that chooses its own noise levels where there is a skip residual.
    """
    if sampler in CALLS_PER_STEP:
        return CALLS_PER_STEP[sampler]
    known = ", ".join(CALLS_PER_STEP)
    if sampler not in FREE_SAMPLERS:
        raise ValueError(f"sampler {sampler!r} does not exist; use one of {known}, {', '.join(FREE_SAMPLERS)}")
    if residual:
        raise ValueError(f"sampler {sampler!r} chooses its own noise levels, where the skip residual cannot follow; turn that off, or use one of {known}")
    return FREE_SAMPLERS[sampler]


def check_steps(sampler: str, steps: int) -> None:
    """Make sure that a phase has as many steps as the sampler needs.

    Raises:
        ValueError: where it has fewer.
    """
    least = LEAST_STEPS.get(sampler, 1)
    if steps < least:
        raise ValueError(f"sampler {sampler!r} needs at least {least} steps in a phase, not {steps}; use more steps or a higher denoising strength")


def step_calls(sigmas: Sequence[float], calls: int) -> list[int]:
    """Model calls of every step of a run over `sigmas`, where a step takes `calls`; a last step to 0 takes one."""
    return [1 if after == 0 else calls for after in sigmas[1:]]


class Clock(Protocol):
    """Tells which step of a sampling run a model call belongs to.

    Attributes:
        step: number of the step of the last call, from 0.
    """

    step: int

    def tick(self, sigma: float) -> bool:
        """Count one model call at noise level `sigma`; true where it is the first of its step."""
        ...

    def finish(self) -> None:
        """Say that the sampler has returned."""
        ...


class LevelClock:
    """Tells the step by the noise level alone, for samplers that choose their levels or calls themselves.

    Args:
        sigmas: (N + 1) levels of the phase, descending; step k reaches from the k-th down to the next.
    """

    def __init__(self, sigmas: Sequence[float]):
        self._sigmas = list(sigmas)
        self.step = 0

    def tick(self, sigma: float) -> bool:
        """Never the first call of a step: which one is cannot be told."""
        reached = (k for k, level in enumerate(self._sigmas[:-1]) if sigma <= level * (1 + ROUNDING))
        self.step = max(reached, default=0)
        return False

    def finish(self) -> None:
        """Any number of calls is right."""


class StepClock:
    """Counts the model calls of one sampling run.

    Args:
        sigmas: the list that the sampler runs on, descending, the last one included.
        calls: of the model in each of the N steps, from `step_calls`.

    Attributes:
        step: number of the step that the last call belonged to; 0 before the first.
    """

    def __init__(self, sigmas: Sequence[float], calls: Sequence[int]):
        self._calls = [step for step, count in enumerate(calls) for _ in range(count)]
        self._sigmas = list(sigmas)
        self._done = 0
        self.step = 0

    def tick(self, sigma: float) -> bool:
        """Count one model call at noise level `sigma`; true where it is the first of its step.

        Raises:
            RuntimeError: where the sampler does not keep to the pattern: going on would mix the wrong latents, silently.
        """
        if self._done == len(self._calls):
            raise RuntimeError(f"the sampler called the model {self._done + 1} times, where its {len(self._sigmas) - 1} steps take {self._done}")
        first = self._done == 0 or self._calls[self._done] != self._calls[self._done - 1]
        self.step = self._calls[self._done]
        self._done += 1
        start = self._sigmas[self.step]
        if first and not start * (1 - ROUNDING) <= sigma <= start * CHURN * (1 + ROUNDING):
            raise RuntimeError(f"the sampler called the model at sigma {sigma:.6g}, where step {self.step + 1} begins at {start:.6g}")
        return first

    def finish(self) -> None:
        """Say that the sampler has returned.

        Raises:
            RuntimeError: where it made fewer calls than its steps take, so that some were counted to the wrong step.
        """
        if self._done != len(self._calls):
            raise RuntimeError(f"the sampler called the model {self._done} times, where its {len(self._sigmas) - 1} steps take {len(self._calls)}")
