"""At which noise levels a sampler calls its model: known before it runs, so that what the calls will cost is, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["CHURNING", "INNER", "Knobs", "call_levels"]

MOST_CHURN = 2**0.5 - 1  # k-diffusion raises a step's first level by at most this share
CHURNING = ("euler", "heun", "dpm_2", "heunpp2")


class Knobs(NamedTuple):
    """What a sampler is given besides its list, as far as it moves noise levels.

    Attributes:
        eta: of the ancestral ones, 0 to 1. `flow`: whether they step down as rectified flow wants it.
        churn: k-diffusion's `s_churn`, for noise levels from `lowest` to `highest`.
    """

    eta: float = 1.0
    flow: bool = False
    churn: float = 0.0
    lowest: float = 0.0
    highest: float = math.inf


PLAIN = Knobs()


def _none(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    return []


def _next(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    return [rest[0]]


def _next_two(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    return list(rest[:-1][:2])  # never the list's end


def _midway(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    return [math.sqrt(sigma * rest[0])]


def _midway_noisy(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    """Of rectified flow's times, between the ratios of noise to picture."""
    if not knobs.flow:
        return _midway(sigma, rest, knobs)
    ratio = math.sqrt(sigma / (1 - sigma) * rest[0] / (1 - rest[0]))
    return [ratio / (1 + ratio)]


def _midway_down(sigma: float, rest: Sequence[float], knobs: Knobs) -> list[float]:
    """To where an ancestral step goes down before it adds its noise."""
    after = rest[0]
    if knobs.flow:
        down = after * (1 + (after / sigma - 1) * knobs.eta)
    else:
        added = min(after, knobs.eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - added**2)
    return [math.sqrt(sigma * down)]


INNER: dict[str, Callable[[float, Sequence[float], Knobs], list[float]]] = {
    "heun": _next,
    "dpm_2": _midway,
    "dpmpp_sde": _midway_noisy,
    "dpm_2_ancestral": _midway_down,
    "dpmpp_2s_ancestral": _midway_down,
    "heunpp2": _next_two,
}
"""What samplers with several calls a step do after the first: the levels of those calls, from the first one's and the list from the step's end on."""


def call_levels(sampler: str, sigmas: Sequence[float], knobs: Knobs = PLAIN) -> list[list[float]]:
    """The noise levels of the model calls of every step; none is made at 0.

    Args:
        sampler: named as in `k_diffusion.sampling` without "sample_"; not one of `FREE_SAMPLERS`.
        sigmas: (N + 1,) the list that it runs on, descending.

    Example:
        >>> call_levels("heun", [4.0, 1.0, 0.0])
        [[4.0, 1.0], [1.0]]
    """
    steps, inner = len(sigmas) - 1, INNER.get(sampler, _none)
    churn = min(knobs.churn / steps, MOST_CHURN) if sampler in CHURNING and knobs.churn else 0.0
    firsts = [sigma * (1 + churn) if knobs.lowest <= sigma <= knobs.highest else sigma for sigma in sigmas[:-1]]
    return [[first, *(level for level in inner(first, sigmas[step + 1 :], knobs) if level > 0)] for step, first in enumerate(firsts)]
