"""Low-pass guidance: what it holds, what it leaves alone, and that every sampler carries it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_ext.core.clock import CALLS_PER_STEP, FREE_SAMPLERS, step_calls
from apt_ext.core.hold import Hold, hold_weight, low_pass
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import make_plan
from apt_ext.core.upscale import enlarge, sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options
from tests.core.small_model import FACTS, SIGMAS, noise_for

REFERENCE = torch.randn(2, 4, 24, 30, generator=torch.Generator().manual_seed(1))
ESTIMATE = torch.randn(2, 4, 24, 30, generator=torch.Generator().manual_seed(2))


def ideal(x: torch.Tensor, sigma: torch.Tensor, **extra: object) -> torch.Tensor:
    """The denoiser of unit white noise, which at low noise keeps what it is given."""
    return x / (1 + sigma[:, None, None, None] ** 2)


def held(weight: float, std: tuple[float, float] = (1.5, 1.5), free: torch.Tensor | None = None) -> torch.Tensor:
    return Hold(REFERENCE, std, lambda sigma: weight, free)(ESTIMATE, 1.0)


def test_no_weight_changes_nothing_at_all() -> None:
    assert held(0.0) is ESTIMATE


def test_full_weight_takes_the_coarse_part_from_the_reference_and_keeps_the_fine_one() -> None:
    """D' = D + LP(z - D), so LP applied twice tells the rest: what is coarser than the low-pass is z's."""
    wide, fine = (6.0, 6.0), (0.6, 0.6)
    result = held(1.0, std=fine)
    apart = low_pass(ESTIMATE, wide) - low_pass(REFERENCE, wide)
    assert (low_pass(result, wide) - low_pass(REFERENCE, wide)).abs().max() < 0.05 * apart.abs().max()
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(12, 15)
    fine_before, fine_after = ((x * checker).mean((-1, -2)) for x in (ESTIMATE, held(1.0)))
    torch.testing.assert_close(fine_before, fine_after, atol=2e-3, rtol=0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_change_is_proportional_to_the_weight(a: float, b: float) -> None:
    one, two = held(a) - ESTIMATE, held(b) - ESTIMATE
    torch.testing.assert_close(one * b, two * a, atol=1e-5, rtol=0)


def test_a_free_place_is_not_held_and_the_rest_is_as_without_a_mask() -> None:
    free = torch.zeros(24, 30)
    free[:, :10] = 1
    result = held(1.0, free=free)
    assert torch.equal(result[..., :10], ESTIMATE[..., :10])
    assert torch.equal(result[..., 10:], held(1.0)[..., 10:])


def test_a_low_pass_leaves_a_plane_alone_and_each_axis_has_a_width_of_its_own() -> None:
    torch.testing.assert_close(low_pass(torch.full((1, 1, 9, 9), 3.0), (2.0, 0.3)), torch.full((1, 1, 9, 9), 3.0))
    stripes = torch.tensor([1.0, -1.0]).repeat(16)
    down, across = stripes[:, None].expand(32, 32)[None, None], stripes.expand(32, 32)[None, None]
    assert low_pass(down, (3.0, 0.1)).abs().max() < 0.02
    assert low_pass(across, (3.0, 0.1)).abs().min() > 0.9


def test_the_weight_falls_from_the_first_level_to_none() -> None:
    weight = hold_weight(0.8, 2.0, 0.3)
    assert weight(2.0) == weight(5.0) == pytest.approx(0.8)
    assert weight(0.3) == weight(0.1) == 0
    assert weight(math.sqrt(2.0 * 0.3)) == pytest.approx(0.4)
    levels = [weight(sigma) for sigma in (2.0, 1.5, 1.0, 0.7, 0.5, 0.35)]
    assert levels == sorted(levels, reverse=True)
    assert hold_weight(1.0, 0.3, 0.3)(0.3) == 0, "a phase that begins where the hold has faded out is not held"


@pytest.mark.parametrize("sampler", [*CALLS_PER_STEP, *FREE_SAMPLERS])
def test_every_sampler_carries_it_and_it_keeps_the_picture(sampler: str) -> None:
    """Also those that choose their noise levels themselves. The held result's coarse part is nearer to the enlarged picture's."""
    z = torch.randn(1, 4, 8, 10, generator=torch.Generator().manual_seed(5))
    apart = {}
    for strength in (0.0, 1.0):
        options = Options(phases="direct", skip_residual=False, hold=strength, hold_width=0.5, reanchor="off", matching=0.0)
        sigmas = shortcut_sigmas(make_sigmas("karras", 8, SIGMAS), 0.7)
        plan = make_plan((8, 10), (16, 20), options, FACTS, sigmas, step_calls(sigmas.tolist(), CALLS_PER_STEP.get(sampler, 1)), 3)
        sample = sample_with(
            ViewCalls(ideal, options.window_batch),
            lambda phase: make_sampler(sampler, [7]),
            noise_for([1]),
            model_calls=plan.calls if sampler in CALLS_PER_STEP else None,
        )
        done = upscale(z, z, plan, sample)
        assert torch.isfinite(done).all()
        apart[strength] = float((low_pass(done, (2.0, 2.0)) - low_pass(enlarge(z, (16, 20)), (2.0, 2.0))).square().mean())
    assert apart[1.0] < 0.7 * apart[0.0]
