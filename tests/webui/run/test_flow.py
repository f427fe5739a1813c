"""Rectified flow under the host's samplers: its coordinates, and which samplers are right for it."""

from __future__ import annotations

import math

import pytest
import torch

from apt_ext.core.call_levels import Knobs
from apt_ext.core.clock import CALLS_PER_STEP
from apt_ext.core.noise_levels import flow_timestep, scale_aware_sigmas, scale_aware_times
from apt_ext.core.phases import plan_phases
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.types import Size
from apt_ext.core.views import ViewCalls
from apt_ext.options import Options
from apt_ext.webui.model import FAMILIES, facts_of
from apt_ext.webui.run.coordinates import FlowCoordinates, SigmaCoordinates, TimestepCoordinates
from apt_ext.webui.run.samplers import FLOW_SAMPLERS, check_flow_sampler, coordinates_of, levels_of

FLOW = FlowCoordinates()
FACTS = facts_of("flux", torch.linspace(0.001, 1, 10), 64)
PHASE = plan_phases((8, 8), (8, 8), (16, 24), "direct")[0]
X = torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(3))
TIMES = torch.tensor([0.9, 0.7, 0.4, 0.2, 0.0])


def of_flow(state, t, **extra):
    """An analytic model in the flow's coordinates, which looks at its neighbours."""
    time = t[:, None, None, None]
    return 0.5 * (1 - time) * state + 0.3 * torch.tanh(state.roll(1, -1) + 0.5 * state.roll(1, -2))


def denoised(x, sigma, **extra):
    """The same model in k-diffusion's."""
    level = sigma[:, None, None, None]
    return of_flow(x / (1 + level), sigma / (1 + sigma))


def fused(denoiser):
    options = Options(window_batch=3, jitter=0.0)
    return PhaseSetup(PHASE, options, FACTS, 0).fuse(ViewCalls(denoiser, options.window_batch), lambda: 0)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.8, 0.95])
def test_the_engine_gives_the_same_estimate_as_in_k_diffusion_s_coordinates(t):
    sigma = t / (1 - t)
    told = FLOW.estimate(fused(FLOW.denoiser(of_flow)), X, torch.full((2,), t), {})
    clean = SigmaCoordinates().estimate(fused(denoised), X * (1 + sigma), torch.full((2,), sigma), {})
    torch.testing.assert_close(told, clean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("t", [0.3, 0.9999, 1.0])
def test_the_model_is_told_the_sampler_s_own_time_and_state(t):
    told = []

    def model(state, times, **extra):
        told.append((state, times, extra))
        return state

    time = torch.full((2,), t)
    assert FLOW.estimate(FLOW.denoiser(model), X, time, {"guidance": "3.5"}).dtype == X.dtype
    ((state, times, extra),) = told
    torch.testing.assert_close(state, X, rtol=1e-6, atol=1e-6)
    assert torch.equal(times, time)
    assert extra == {"guidance": "3.5"}


def test_levels_are_the_last_steps_of_the_list_as_k_diffusion_writes_them():
    levels = FLOW.levels(torch.tensor([1.0, 0.75, 0.5, 0.2, 0.0]), 4, 2)
    assert levels.tolist() == pytest.approx([3.0, 1.0, 0.25, 0.0])
    whole = FLOW.levels(torch.tensor([1.0, 0.75, 0.0]), 2, 1)
    assert whole.isfinite().all()
    assert whole[0] == FLOW.level(torch.tensor([1.0]))
    assert flow_timestep(float(whole[0])) == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize(("own", "wrong"), [([9999.0, 5000.0, 0.0], "9999"), ([14.6, 0.5, 0.0], "14.6"), ([0.8, 0.0, 0.0], "0"), ([0.5, math.nan, 0.0], "nan")])
def test_a_schedule_of_another_kind_of_model_is_refused(own, wrong):
    sentence = rf"^the schedule type has noise level {wrong}, and this checkpoint's are above 0 and at most 1; choose Simple, Normal or Beta$"
    with pytest.raises(ValueError, match=sentence):
        FLOW.levels(torch.tensor(own), 2, 1)


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.75])
def test_scale_aware_scheduling_is_the_flow_s_own_rule(gamma):
    made = FLOW.rescaled(TIMES, 2.0, gamma, FACTS.sigma_max)
    assert torch.equal(made, scale_aware_times(TIMES, 2.0, gamma))
    sigmas = TIMES / (1 - TIMES)
    torch.testing.assert_close(made / (1 - made), scale_aware_sigmas(sigmas, 2.0, gamma, FACTS.sigma_max), rtol=1e-5, atol=1e-6)


def test_noised_latents_stand_where_the_sampler_starts():
    t = 0.7
    sigma = FLOW.level(torch.tensor([t]))
    state, scaled = FLOW.noised(X, X.flip(0), sigma)
    torch.testing.assert_close(state + sigma * scaled, (1 - t) * X + t * X.flip(0), atol=1e-5, rtol=1e-5)


def test_the_facts_are_those_of_a_flow():
    assert (Size(8, 8), 2, math.inf, flow_timestep, 8) == FACTS
    assert {name for name, family in FAMILIES.items() if family.flow} == {"flux", "sd3", "chroma", "zimage", "lumina2", "sdxlrf", "mugen"}


def test_coordinates_follow_the_checkpoint():
    table = torch.linspace(0.99, 0.01, 10)
    assert isinstance(coordinates_of("sample_euler", table, flow=True), FlowCoordinates)
    assert isinstance(coordinates_of("ddim", table, flow=True), TimestepCoordinates)


CLEAN = 3.0


def noise_left(function, **given):
    """The noise of every state that a sampler asks its model about, where the clean picture is known: of a flow's state, (state - (1 - t) z) / t."""
    found = []

    def model(state, t, **extra):
        time = float(t[0])
        found.append((state - (1 - time) * CLEAN) / time)
        return torch.full_like(state, CLEAN)

    noise = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    start = (1 - TIMES[0]) * CLEAN + TIMES[0] * noise
    torch.manual_seed(1)
    return function(model, start, TIMES, disable=True, **given), found


@pytest.mark.parametrize("name", sorted(set(FLOW_SAMPLERS) & set(CALLS_PER_STEP)))
def test_a_sampler_that_is_taken_keeps_the_noise_that_its_times_say(sampling, name):
    check_flow_sampler(name, f"sample_{name}", 0.0, ())
    end, found = noise_left(getattr(sampling, f"sample_{name}"))
    torch.testing.assert_close(end, torch.full_like(end, CLEAN), atol=1e-4, rtol=1e-4)
    for left in found[1:]:
        torch.testing.assert_close(left, found[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(set(CALLS_PER_STEP) - set(FLOW_SAMPLERS)))
def test_a_sampler_that_is_refused_does_not(sampling, name):
    _, found = noise_left(getattr(sampling, f"sample_{name}"))
    assert max(float(left.mean().abs()) for left in found) > 0.1, "unit noise has mean 0; this state shows too much or too little of the picture"
    with pytest.raises(ValueError, match=r"^sampler 'Shown' adds noise in proportions that are wrong for this checkpoint, of rectified flow; use Euler, Heun"):
        check_flow_sampler("Shown", f"sample_{name}", 0.0, ())


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_nor_does_churn(sampling, name):
    _, found = noise_left(getattr(sampling, f"sample_{name}"), s_churn=2.0)
    assert max(float(left.mean().abs()) for left in found) > 0.1
    with pytest.raises(ValueError, match=r"^sigma churn 2 adds noise .*; set it to 0$"):
        check_flow_sampler("Shown", f"sample_{name}", 2.0, ())


@pytest.mark.parametrize("name", ["sample_lcm", "dpm_fast", "dpm_adaptive", "restart_sampler"])
def test_the_hosts_other_samplers_that_add_noise_are_refused(name):
    with pytest.raises(ValueError, match="adds noise in proportions"):
        check_flow_sampler("Shown", name, 0.0, ())


@pytest.mark.parametrize("name", ["ddim", "ddim_cfgpp", "plms", "unipc"])
def test_samplers_by_timesteps_are_refused(name):
    with pytest.raises(ValueError, match="steps through the timesteps of a schedule that this checkpoint has not got; use Euler"):
        check_flow_sampler("Shown", name, 0.0, ())


def test_a_host_s_own_noise_is_taken_where_it_says_so():
    check_flow_sampler("Euler a", "sample_euler_ancestral", 0.0, ("euler_ancestral",))
    check_flow_sampler("DPM++ 2M", "sample_dpmpp_2m", 2.0, ())  # which has no churn


@pytest.mark.parametrize("start", [1.0, 0.9])
def test_dpmpp_sde_s_second_call_lies_midway_in_the_ratio_of_noise_to_picture(start):
    levels = FLOW.levels(torch.tensor([start, 0.6, 0.2, 0.0]), 3, 2).tolist()
    found = levels_of("sample_dpmpp_sde", Knobs(flow=True), FLOW, levels)
    assert [len(step) for step in found] == [2, 2, 1]
    for step, after in zip(found[:2], levels[1:], strict=False):
        assert step[1] == pytest.approx(math.sqrt(step[0] * after), rel=1e-6)
