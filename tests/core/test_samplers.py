"""The skip residual inside every one of k-diffusion's samplers, run unchanged."""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from apt_ext.core.call_levels import Knobs, call_levels
from apt_ext.core.clock import CALLS_PER_STEP, LEAST_STEPS, StepClock, check_steps, sampler_calls, step_calls
from apt_ext.core.residual import PhaseDenoiser, StepMixer
from apt_ext.core.weights import PathWeights
from tests.core.sampler_probe import SigmaNoise, probe, replay, run
from tests.core.sampler_runs import LISTS, NOISE, SHAPE, Z_UP, Run, chain, draw, far, karras, mix, sampler_of, toy

# Samplers whose step needs nothing but the state, and those that keep a history across steps.
SINGLE = ["euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]
MULTI = ["lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]
CHURNING = ["euler", "heun", "dpm_2"]


def test_every_sampler_that_takes_a_list_of_sigmas_is_known(sampling: ModuleType) -> None:
    functions = {name.removeprefix("sample_"): f for name, f in vars(sampling).items() if name.startswith("sample_")}
    assert {name for name, f in functions.items() if "sigmas" in inspect.signature(f).parameters} == set(CALLS_PER_STEP) == {*SINGLE, *MULTI}
    for name in functions.keys() - set(CALLS_PER_STEP):
        with pytest.raises(ValueError, match=f"'{name}' chooses its own noise levels"):
            sampler_calls(name)
    assert functions.keys() - set(CALLS_PER_STEP) == {"dpm_fast", "dpm_adaptive"}
    with pytest.raises(ValueError, match="'unipc' does not exist; use one of euler, "):
        sampler_calls("unipc")


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_the_clock_knows_the_pattern(name: str, sigmas: Tensor) -> None:
    """The clock says "first call of a step" at exactly the calls that the sampler's own callback follows, and counts the steps as it does."""
    update = probe(sampler_of(name), sigmas, derivative=False)
    clock = StepClock(sigmas.tolist(), step_calls(sigmas.tolist(), sampler_calls(name)))
    told = [(clock.tick(level), clock.step) for level in update.levels]
    assert [call for call, (first, _) in enumerate(told) if first] == update.starts[:-1]
    assert [step for first, step in told if first] == list(range(len(sigmas) - 1))
    with pytest.raises(RuntimeError, match=f"called the model {len(told) + 1} times"):
        clock.tick(float(sigmas[-2]))


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("knobs", [Knobs(), Knobs(eta=0.0), Knobs(eta=0.4), Knobs(churn=1.5), Knobs(churn=90.0, lowest=0.2, highest=3.0)])
@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_the_levels_of_all_calls_are_known_beforehand(name: str, knobs: Knobs, sigmas: Tensor) -> None:
    taken = inspect.signature(sampler_of(name)).parameters
    told = {"eta": knobs.eta, "s_churn": knobs.churn, "s_tmin": knobs.lowest, "s_tmax": knobs.highest}
    seen: list[float] = []

    def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        seen.append(float(sigma.max()))
        return toy(x, sigma)

    if len(sigmas) > LEAST_STEPS.get(name, 1):
        run(sampler_of(name), model, Z_UP + sigmas[0] * NOISE, sigmas, SigmaNoise(SHAPE), **{key: told[key] for key in told if key in taken})
        planned = call_levels(name, sigmas.tolist(), knobs)
        assert [level for step in planned for level in step] == pytest.approx(seen, rel=1e-9)
        assert [len(step) for step in planned] == step_calls(sigmas.tolist(), sampler_calls(name))


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("name", SINGLE)
def test_in_place_mix_equals_a_chain_of_one_step_runs(name: str, sigmas: Tensor) -> None:
    """To the last bit: the sampler sees the mixed state as if it had begun the step with it, and sees it once per step."""
    made = Run(name, sigmas)
    assert torch.equal(made.result, chain(name, made.start, sigmas))
    assert made.mixes == sigmas[:-1].tolist()


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_in_place_mix_equals_the_samplers_update_on_the_mixed_state(name: str, sigmas: Tensor) -> None:
    """The multistep samplers too: they carry their history on, made from the mixed states, and every model call sees what it should."""
    made = Run(name, sigmas)
    update = probe(sampler_of(name), sigmas, derivative=name == "lms")
    expected = replay(update, toy, made.start, mix, SigmaNoise(SHAPE))
    seen = [*made.seen, made.result]
    assert len(seen) == len(expected)
    assert max(far(a, b) for a, b in zip(seen, expected, strict=True)) < 1e-9
    assert made.mixes == sigmas[:-1].tolist()


@pytest.mark.parametrize("name", MULTI)
def test_multistep_samplers_are_no_chain_of_one_step_runs(name: str) -> None:
    """Why they need a reference of their own: a chain would throw their history away."""
    made = Run(name, LISTS["DDIM, to 0.029"])
    assert far(made.result, chain(name, made.start, LISTS["DDIM, to 0.029"])) > 1e-3


@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_without_a_residual_nothing_changes(name: str) -> None:
    sigmas = LISTS["to 0"]
    made = Run(name, sigmas, residual=False)
    assert torch.equal(made.result, run(sampler_of(name), toy, made.start, sigmas, SigmaNoise(SHAPE)))
    assert made.mixes == []
    assert far(made.result, Run(name, sigmas).result) > 1e-2  # so the residual does do something here


@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_the_first_mix_is_written_into_the_callers_tensor(name: str) -> None:
    """The sampler works on the tensor that it is given, so the first mix lands there: a caller that needs it afterwards clones it."""
    sigmas = LISTS["to 0"]
    x = Z_UP + sigmas[0] * NOISE + draw(3)
    made = Run(name, sigmas, x)
    assert not torch.equal(x, made.start)
    assert torch.equal(x, mix(made.start, float(sigmas[0])))
    assert torch.equal(made.result, Run(name, sigmas, made.start.clone()).result)


@pytest.mark.parametrize("s_churn", [1.0, 4.0, 40.0])
@pytest.mark.parametrize("name", CHURNING)
def test_churn(name: str, s_churn: float) -> None:
    """Churn raises a step's noise level before the model is called (by sqrt(2) at most, reached at 40): the mix happens there, at the raised level."""
    sigmas = LISTS["to 0"]
    steps = len(sigmas) - 1
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Run(name, sigmas, s_churn=s_churn)
        torch.manual_seed(0)
        added = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(steps)]
        x, levels = made.start, []
        for i, eps in enumerate(added):
            raised = sigmas[i] * (gamma + 1)
            levels.append(float(raised))
            x = mix(x + eps * (raised**2 - sigmas[i] ** 2) ** 0.5, levels[-1])
            x = run(sampler_of(name), toy, x, torch.stack([raised, sigmas[i + 1]]), SigmaNoise(SHAPE))
    assert torch.equal(made.result, x)
    assert made.mixes == levels


@pytest.mark.parametrize("name", [name for name in CALLS_PER_STEP if LEAST_STEPS.get(name, 1) == 1])
def test_one_step_to_0(name: str) -> None:
    """The shortest list that a shortcut can leave: one call, one mix, and the result is the denoiser's answer."""
    sigmas = torch.tensor([3.0, 0.0], dtype=torch.float64)
    made = Run(name, sigmas)
    assert made.mixes == [3.0]
    assert torch.equal(made.seen[0], mix(made.start, 3.0))
    assert far(made.result, toy(made.seen[0], torch.full((2,), 3.0, dtype=torch.float64))) < 1e-12


@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_a_phase_too_short_for_its_sampler_is_refused(name: str) -> None:
    """Two of k-diffusion's samplers fail on a single step to 0, with or without a residual; they are told in words before that."""
    sigmas = torch.tensor([3.0, 0.0], dtype=torch.float64)
    if name in LEAST_STEPS:
        with pytest.raises(UnboundLocalError):
            Run(name, sigmas)
        with pytest.raises(ValueError, match=f"sampler '{name}' needs at least 2 steps in a phase, not 1"):
            check_steps(name, 1)
    check_steps(name, LEAST_STEPS.get(name, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS_PER_STEP)
def test_the_clock_bears_half_precision(name: str, dtype: torch.dtype) -> None:
    """A sampler hands its sigmas on in the latents' precision, so that they come back rounded."""
    mixes: list[float] = []

    def counted(sigma: float) -> PathWeights:
        mixes.append(sigma)
        return PathWeights(0.1, 0.1, 0.1)

    def half(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        return x / 2

    sigmas = karras(50).float()
    clock = StepClock(sigmas.tolist(), step_calls(sigmas.tolist(), sampler_calls(name)))
    phase = PhaseDenoiser(half, StepMixer(clock, counted, (Z_UP.to(dtype), NOISE.to(dtype))))
    noise = SigmaNoise(SHAPE)
    run(sampler_of(name), phase, (14.6 * NOISE).to(dtype), sigmas, lambda a, b: noise(a, b).to(dtype))
    assert mixes == pytest.approx(sigmas[:-1].tolist(), rel=4e-3)
