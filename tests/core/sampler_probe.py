"""Takes a real sampler apart: its update rule, recovered from outside by impulses, and run again by plain out-of-place code.

Every sampler of k-diffusion is affine: what it shows the model next is a fixed combination of its state at the start of the step, of
the model's earlier answers and of the noise it drew. The answers are scripted and independent of the state, so each coefficient can
be read off one run, pixel by pixel: one pixel carries the impulse in the start, one each answer, one each draw of noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["SigmaNoise", "Update", "probe", "replay", "run"]

Model = Callable[..., Tensor]


class SigmaNoise:
    """A noise sampler that gives the same noise for the same pair of levels, whoever asks, and however often."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        seed = hash((float(sigma), float(sigma_next))) % 2**63
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(sampler: Callable[..., Tensor], model: Model, x: Tensor, sigmas: Tensor, noise: Callable[[Any, Any], Tensor], **options: Any) -> Tensor:
    """One run of a sampler, with the noise source where it takes one."""
    if "noise_sampler" in inspect.signature(sampler).parameters:
        options["noise_sampler"] = noise
    return sampler(model, x, sigmas, disable=True, **options)


class Update(NamedTuple):
    """A sampler's update rule over one list of sigmas.

    Attributes:
        starts: number of the first model call of every step, told by the sampler's own callback, and the number of calls.
        levels: sigma of every model call. `draws`: the pair of levels of every draw of noise.
        state: (calls + 1,) the share of the run's first state in what each call sees, the result being the last.
        answers: (calls + 1, calls), noise: (calls + 1, draws): the shares of the model's answers and of the draws.
        derivative: the answers are (x - D) / sigma and not D: the history that this sampler keeps.
    """

    starts: list[int]
    levels: list[float]
    draws: list[tuple[float, float]]
    state: Tensor
    answers: Tensor
    noise: Tensor
    derivative: bool

    def rest(self, call: int, first: int) -> tuple[float, Tensor, Tensor]:
        """What call `call` sees in terms of what call `first` saw: the shares of that state, of the answers and of the draws."""
        share = float(self.state[call] / self.state[first])
        return share, self.answers[call] - share * self.answers[first], self.noise[call] - share * self.noise[first]


def _listen(sampler: Callable[..., Tensor], answer: Callable[[int, Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor, draw: Callable[[int], Tensor]) -> Any:
    """Run a sampler on scripted answers: (what every call saw and the result, levels, draws, first calls of the steps)."""
    seen: list[Tensor] = []
    levels: list[float] = []
    draws: list[tuple[float, float]] = []
    starts: list[int] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x.clone())
        levels.append(float(sigma.max()))
        return answer(len(seen) - 1, x, sigma)

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        draws.append((float(sigma), float(sigma_next)))
        return draw(len(draws) - 1)

    result = run(sampler, model, x, sigmas, noise, callback=lambda info: starts.append(len(seen) - 1))
    return torch.stack([*seen, result]).flatten(1), levels, draws, starts


def probe(sampler: Callable[..., Tensor], sigmas: Tensor, derivative: bool) -> Update:
    """Recover a sampler's update rule. With `derivative` the script fixes (x - D) / sigma, which is what LMS keeps, and not D."""
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    _, levels, draws, starts = _listen(sampler, lambda call, x, sigma: nothing, nothing, sigmas, lambda number: nothing)
    calls = len(levels)
    basis = torch.eye(1 + calls + len(draws), dtype=torch.float64)[:, None, None, None]

    def answer(call: int, x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma.max() * basis[1 + call] if derivative else basis[1 + call]

    rows = _listen(sampler, answer, basis[0], sigmas, lambda number: basis[1 + calls + number])[0]
    return Update([*starts, calls], levels, draws, rows[:, 0], rows[:, 1 : 1 + calls], rows[:, 1 + calls :], derivative)


def replay(update: Update, model: Model, x: Tensor, mix: Callable[[Tensor, float], Tensor], noise: Callable[[Any, Any], Tensor]) -> list[Tensor]:
    """The same sampler with `mix(state, sigma)` in place of the state at every step's start: what each call sees, and the result."""
    answers = torch.zeros(len(update.levels), *x.shape, dtype=torch.float64)
    drawn = torch.stack([noise(*pair) for pair in update.draws]) if update.draws else torch.zeros(0, *x.shape, dtype=torch.float64)
    seen: list[Tensor] = []
    for first, after in zip(update.starts, update.starts[1:], strict=False):
        x = mix(x, update.levels[first])
        for call in range(first, after):
            share, of_answers, of_noise = update.rest(call, first)
            assert not of_answers[call:].any(), "a model call depends on its own or on a later answer"
            seen.append(share * x + torch.tensordot(of_answers, answers, 1) + torch.tensordot(of_noise, drawn, 1))
            level = update.levels[call]
            denoised = model(seen[-1], x.new_full((x.shape[0],), level))
            answers[call] = (seen[-1] - denoised) / level if update.derivative else denoised
        share, of_answers, of_noise = update.rest(after, first)
        x = share * x + torch.tensordot(of_answers, answers, 1) + torch.tensordot(of_noise, drawn, 1)
    return [*seen, x]
