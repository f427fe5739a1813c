"""A wrong idea of a sampler's evaluation pattern does not pass unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from apt_ext.core.clock import CALLS_PER_STEP, LevelClock, StepClock
from tests.core.sampler_probe import SigmaNoise, run
from tests.core.sampler_runs import LISTS, SHAPE, Run, chain, far, karras, mix, sampler_of, toy

TWICE = [name for name, count in CALLS_PER_STEP.items() if count == 2]
ONCE = [name for name, count in CALLS_PER_STEP.items() if count == 1]
DENSE = {"50 steps": karras(50), "200 steps": karras(200), **LISTS}


@pytest.mark.parametrize("sigmas", DENSE.values(), ids=DENSE)
@pytest.mark.parametrize("name", TWICE)
def test_a_second_order_sampler_taken_for_first_order_is_caught(name: str, sigmas: Tensor) -> None:
    """Also Heun, whose inner evaluation stands at the very level at which the next step begins, on lists so dense that no level looks wrong."""
    with pytest.raises(RuntimeError, match="the sampler called the model"):
        Run(name, sigmas, calls=1)


@pytest.mark.parametrize("sigmas", [value for value in DENSE.values() if len(value) > 3], ids=[name for name, value in DENSE.items() if len(value) > 3])
@pytest.mark.parametrize("name", ONCE)
def test_a_first_order_sampler_taken_for_second_order_is_caught(name: str, sigmas: Tensor) -> None:
    with pytest.raises(RuntimeError, match="where step 2 begins"):
        Run(name, sigmas, calls=2)


class FirstCallAtSigma:
    """The trigger that suggests itself: mix at the first call at each of the list's levels."""

    def __init__(self, sigmas: Tensor):
        self.left = sigmas[:-1].tolist()

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        if self.left and float(sigma.max()) == self.left[0]:
            x.copy_(mix(x, self.left.pop(0)))
        return toy(x, sigma)


def test_the_noise_level_alone_cannot_tell_heuns_steps_apart() -> None:
    """Why there is a clock: the trigger by level is right for Euler and mixes into Heun's inner evaluation instead of its next step."""
    sigmas = LISTS["to 0"]
    for name, right in (("euler", True), ("heun", False)):
        start = Run(name, sigmas).start
        naive = run(sampler_of(name), FirstCallAtSigma(sigmas), start.clone(), sigmas, SigmaNoise(SHAPE))
        assert (far(naive, chain(name, start, sigmas)) < 1e-12) is right
        assert right or far(naive, chain(name, start, sigmas)) > 1e-2


def test_levels_that_do_not_begin_a_step_are_refused() -> None:
    for sigma in (4.9, 5.0 * 1.5, 0.0):
        clock = StepClock([10.0, 5.0, 0.0], [1, 1])
        assert clock.tick(10.0)
        with pytest.raises(RuntimeError, match=f"at sigma {sigma:.6g}, where step 2 begins at 5"):
            clock.tick(sigma)


def test_more_calls_than_steps_are_refused() -> None:
    clock = StepClock([10.0, 5.0, 0.0], [2, 1])
    assert [clock.tick(sigma) for sigma in (10.0, 7.0, 5.0)] == [True, False, True]
    assert clock.step == 1
    with pytest.raises(RuntimeError, match="called the model 4 times, where its 2 steps take 3"):
        clock.tick(2.0)


def test_fewer_calls_than_steps_are_refused_at_the_end() -> None:
    clock = StepClock([10.0, 5.0, 0.0], [2, 1])
    clock.tick(10.0)
    with pytest.raises(RuntimeError, match="called the model 1 times, where its 2 steps take 3"):
        clock.finish()
    for sigma in (7.0, 5.0):
        clock.tick(sigma)
    clock.finish()


def test_a_level_clock_tells_the_step_by_the_level() -> None:
    """In any number of calls, upwards too; levels between two steps belong to the earlier one."""
    clock = LevelClock([10.0, 5.0, 1.0, 0.0])
    told = [(clock.tick(sigma), clock.step) for sigma in (10.0, 7.0, 5.0, 5.0, 3.0, 1.0, 0.2, 7.0, 12.0)]
    assert told == [(False, step) for step in (0, 0, 1, 1, 1, 2, 2, 0, 0)]
    clock.finish()
