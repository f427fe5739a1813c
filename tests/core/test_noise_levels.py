"""Noise levels: timesteps, Scale-aware Scheduling and the shortcut, against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.noise_levels import (
    discrete_timestep,
    flow_timestep,
    scale_aware_sigmas,
    scale_aware_times,
    shortcut_start,
    unscaled_sigma,
)

MANY = settings(deadline=None, max_examples=150)
SOME = settings(deadline=None, max_examples=40)

GAMMA = st.floats(-2, 2)
SCALE = st.floats(1, 16)
SIGMA_MAX = st.one_of(st.floats(1, 200), st.just(math.inf))

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
TABLE = ((1 - ALPHAS) / ALPHAS).sqrt().float()  # Stable Diffusion's own noise levels
SIGMA_SD = float(TABLE[-1])


def karras(steps: int, low: float, high: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A usual descending list, 0 at its end."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    sigmas[0] = high
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(dtype)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def k_diffusion_t(sigma: float, sigmas: Tensor) -> float:
    """`k_diffusion.external.DiscreteSchedule.sigma_to_t(sigma, quantize=False)`, line by line, in float64."""
    logs = sigmas.double().log()
    log_sigma = torch.tensor([sigma], dtype=torch.float64).log()
    dists = log_sigma - logs[:, None]
    low_idx = dists.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=logs.shape[0] - 2)
    high_idx = low_idx + 1
    low, high = logs[low_idx], logs[high_idx]
    w = ((low - log_sigma) / (low - high)).clamp(0, 1)
    return float((1 - w) * low_idx + w * high_idx)


@MANY
@given(st.floats(1e-3, 40))
def test_discrete_timestep_is_k_diffusions(sigma: float) -> None:
    """The weights must be taken at the timestep that the model itself is given."""
    assert discrete_timestep(TABLE)(sigma) == pytest.approx(k_diffusion_t(sigma, TABLE), abs=1e-7)


def test_discrete_timestep_of_table_entries() -> None:
    """An entry of the table has its own index, exactly; beyond the ends it stays at the end."""
    timestep = discrete_timestep(TABLE)
    assert [timestep(float(s)) for s in TABLE] == list(range(1000))
    assert (timestep(0.0), timestep(1e-9), timestep(1e9)) == (0.0, 0.0, 999.0)
    short = discrete_timestep(TABLE[3::4])
    assert [short(float(s)) for s in TABLE[3::4]] == list(range(0, 1000, 4))


@SOME
@given(st.floats(0, 0.999))
def test_flow_timestep(t: float) -> None:
    """Rectified flow: sigma = t / (1 - t), times counted to 1000."""
    assert flow_timestep(t / (1 - t)) == pytest.approx(1000 * t, abs=1e-9)


# --- Scale-aware Scheduling ------------------------------------------------------------------------------------------------------


@SOME
@given(SCALE, GAMMA, SIGMA_MAX, st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_gamma_zero_and_scale_one_are_the_identity(scale: float, gamma: float, sigma_max: float, dtype: torch.dtype) -> None:
    """Bit for bit: with the option off the base method must not change in the last digit."""
    sigmas = karras(20, 0.03, min(sigma_max, 100.0), dtype)
    for s, g in ((scale, 0.0), (1.0, gamma)):
        assert torch.equal(scale_aware_sigmas(sigmas, s, g, sigma_max), sigmas)
        assert [unscaled_sigma(float(v), s, g, sigma_max) for v in sigmas] == [float(v) for v in sigmas]
        assert torch.equal(scale_aware_times(sigmas / 200, s, g), sigmas / 200)


@MANY
@given(SCALE, GAMMA, SIGMA_MAX, st.integers(2, 60))
@example(16.0, 2.0, SIGMA_SD, 50)
@example(16.0, -2.0, SIGMA_SD, 50)
def test_schedule_is_the_snr_formula(scale: float, gamma: float, sigma_max: float, steps: int) -> None:
    """SNR' = SNR_T + (SNR - SNR_T) / s^(2 gamma), each level on its own; 0 stays 0, sigma_max stays sigma_max, order is kept."""
    high = min(sigma_max, 100.0)
    sigmas = karras(steps, 0.03, high)
    out = scale_aware_sigmas(sigmas, scale, gamma, sigma_max)
    assert out.shape == sigmas.shape
    assert out.dtype == sigmas.dtype
    assert out[-1] == 0
    snr_t = 1 / sigma_max**2
    for s, got in zip(sigmas[:-1].tolist(), out[:-1].tolist(), strict=True):
        assert got == pytest.approx((snr_t + max(0.0, 1 / s**2 - snr_t) / scale ** (2 * gamma)) ** -0.5, rel=1e-9)
    if sigma_max == high:
        assert float(out[0]) == pytest.approx(sigma_max, rel=1e-9)
    assert bool((out.diff() < 0).all()), "a strictly descending list must stay one, or a step would have no length"


@SOME
@given(SCALE, GAMMA, st.integers(2, 100))
def test_float32_lists_never_ascend(scale: float, gamma: float, steps: int) -> None:
    """Rounded to float32 two levels beside sigma_max may meet at extreme exponents, but never cross, and the top stays."""
    sigmas = karras(steps, 0.03, SIGMA_SD, torch.float32)
    out = scale_aware_sigmas(sigmas, scale, gamma, SIGMA_SD)
    assert out.dtype == torch.float32
    assert out[0] == sigmas[0]
    assert out[-1] == 0
    assert bool((out.diff() <= 0).all())
    if abs(gamma) * math.log(scale) <= math.log(4):
        assert bool((out.diff() < 0).all())


@MANY
@given(SCALE, GAMMA, SIGMA_MAX, st.floats(1e-4, 1))
@example(16.0, 2.0, SIGMA_SD, 1.0)
@example(16.0, -2.0, SIGMA_SD, 1.0)
def test_unscaled_is_the_inverse(scale: float, gamma: float, sigma_max: float, share: float) -> None:
    """The cosine weights are taken at the unshifted level of the same step."""
    sigma = share * min(sigma_max, 100.0)
    scaled = float(scale_aware_sigmas(torch.tensor([sigma], dtype=torch.float64), scale, gamma, sigma_max))
    assert unscaled_sigma(scaled, scale, gamma, sigma_max) == pytest.approx(sigma, rel=1e-6)


@SOME
@given(SCALE, GAMMA, st.floats(20, 200))
def test_far_below_sigma_max_it_is_a_factor(scale: float, gamma: float, sigma_max: float) -> None:
    """sigma' is about s^gamma sigma there: negative exponents mean less noise, positive ones more."""
    factor = scale**gamma
    sigma = sigma_max * 1e-3 / max(1, factor)
    out = float(scale_aware_sigmas(torch.tensor([sigma], dtype=torch.float64), scale, gamma, sigma_max))
    assert out == pytest.approx(factor * sigma, rel=1e-5)
    infinite = float(scale_aware_sigmas(torch.tensor([sigma], dtype=torch.float64), scale, gamma, math.inf))
    assert infinite == pytest.approx(factor * sigma, rel=1e-12)


def test_infinite_sigma_max() -> None:
    """Zero terminal SNR: pure noise stays pure noise, everything else is multiplied."""
    sigmas = torch.tensor([math.inf, 80.0, 1.0, 0.0], dtype=torch.float64)
    out = scale_aware_sigmas(sigmas, 4.0, -0.5, math.inf)
    assert out.tolist() == pytest.approx([math.inf, 40.0, 0.5, 0.0])
    assert unscaled_sigma(40.0, 4.0, -0.5, math.inf) == pytest.approx(80.0)


@pytest.mark.parametrize("gamma", [-0.5, 0.5])
def test_above_sigma_max_is_refused_and_quoted(gamma: float) -> None:
    """A wrong sigma_max would bend the whole schedule; a hair above it is only rounding, or churn when undone."""
    with pytest.raises(ValueError, match=r"15\.5.*14\.6146"):
        scale_aware_sigmas(torch.tensor([15.5, 1.0]), 2.0, gamma, 14.6146)
    out = scale_aware_sigmas(torch.tensor([14.6147, 1.0]), 2.0, gamma, 14.6146)
    assert float(out[0]) == pytest.approx(14.6146, rel=1e-4)
    assert unscaled_sigma(20.0, 2.0, gamma, 14.6146) == pytest.approx(14.6146)


@MANY
@given(SCALE, GAMMA, st.floats(0, 0.99))
def test_flow_form_equals_the_sigma_form(scale: float, gamma: float, t: float) -> None:
    """sigma = t / (1 - t) joins the two: one rule, written twice."""
    sigma = torch.tensor([t / (1 - t)], dtype=torch.float64)
    through = scale_aware_sigmas(sigma, scale, gamma, math.inf)
    direct = scale_aware_times(torch.tensor([t], dtype=torch.float64), scale, gamma)
    assume(t == 0 or float(sigma) > 1e-9)
    np.testing.assert_allclose((through / (1 + through)).numpy(), direct.numpy(), rtol=1e-9)
    ends = scale_aware_times(torch.tensor([1.0, 0.0]), scale, gamma)
    assert ends.tolist() == [1.0, 0.0]


# --- shortcut --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "fraction", "start"),
    [(50, 0.6, 20), (50, 1.0, 0), (30, 0.6, 12), (20, 0.75, 5), (10, 0.06, 9), (1, 0.5, 0), (50, 0.02, 49), (4, 0.3, 3)],
)
def test_shortcut_start(steps: int, fraction: float, start: int) -> None:
    """0.6 of 50 leaves 30 steps."""
    assert shortcut_start(steps, fraction) == start


@MANY
@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_shortcut_leaves_a_step_or_says_so(steps: int, fraction: float) -> None:
    """The steps that run are `fraction` of all, to half a step."""
    if round((1 - fraction) * steps) == steps:
        assert fraction * steps <= 0.5 + 1e-9
        with pytest.raises(ValueError, match=f"of {steps} steps leaves no step to run"):
            shortcut_start(steps, fraction)
        return
    left = steps - shortcut_start(steps, fraction)
    assert 1 <= left <= steps
    assert abs(left - fraction * steps) <= 0.5 + 1e-9


@pytest.mark.parametrize("fraction", [0.0, -0.25, 1.125, float("nan")])
def test_bad_shortcut_is_quoted(fraction: float) -> None:
    """The user must see which number was wrong."""
    with pytest.raises(ValueError, match=str(fraction)):
        shortcut_start(50, fraction)
