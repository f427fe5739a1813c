"""The host's samplers: which are taken, how often they call their model, and the coordinates they work in."""

from __future__ import annotations

import math

import pytest
import torch

from apt_ext.core.clock import CALLS_PER_STEP
from apt_ext.core.noise_levels import discrete_timestep, scale_aware_sigmas
from apt_ext.core.phases import plan_phases
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.types import ModelFacts, Size
from apt_ext.core.views import ViewCalls
from apt_ext.demo.model import alphas_cumprod
from apt_ext.options import Options
from apt_ext.webui.run.coordinates import SigmaCoordinates, TimestepCoordinates
from apt_ext.webui.run.samplers import (
    FREE,
    check_sampler,
    clock_of,
    coordinates_of,
    model_calls,
    sampler_key,
)

TABLE = alphas_cumprod()
TIMESTEPS = TimestepCoordinates(TABLE)
SIGMAS = TIMESTEPS.sigmas
FACTS = ModelFacts(Size(8, 8), 2, float(SIGMAS[-1]), discrete_timestep(SIGMAS))
PHASE = plan_phases((8, 8), (8, 8), (16, 24), "direct")[0]
DRAW = torch.Generator().manual_seed(3)
X = torch.randn(2, 4, 16, 24, generator=DRAW)


def ddim():
    """Stands for the host's function, which is told apart by its name."""


def noise_estimate(y, t, **extra):
    """An analytic model in variance-preserving coordinates, which looks at its neighbours."""
    share = (1 - TABLE[t.long()]).sqrt()[:, None, None, None]
    return share * y + 0.3 * torch.tanh(y.roll(1, -1) + 0.5 * y.roll(1, -2))


def denoised(x, sigma, **extra):
    """The same model in k-diffusion's coordinates."""
    level = float(sigma.max())
    t = torch.full((len(x),), TIMESTEPS.nearest(level))
    return x - level * noise_estimate(x * (1 + level**2) ** -0.5, t)


def fused(denoiser):
    options = Options(window_batch=3, jitter=0.0)
    return PhaseSetup(PHASE, options, FACTS, 0).fuse(ViewCalls(denoiser, options.window_batch), lambda: 0)


@pytest.mark.parametrize("t", [1, 51, 301, 801, 999])
def test_both_coordinates_give_the_same_estimate(t):
    sigma = float(SIGMAS[t])
    x = X * (1 + sigma**2) ** 0.5
    clean = SigmaCoordinates().estimate(fused(SigmaCoordinates().denoiser(denoised)), x, torch.full((2,), sigma), {})
    noise = TIMESTEPS.estimate(fused(TIMESTEPS.denoiser(noise_estimate)), X, torch.full((2,), float(t)), {})
    torch.testing.assert_close(noise, (x - clean) / sigma, atol=1e-5, rtol=1e-5)


def test_the_model_is_told_its_own_timestep_and_what_else_it_gets():
    told = []

    def model(y, t, **extra):
        told.append((t.clone(), extra))
        return y

    TIMESTEPS.estimate(TIMESTEPS.denoiser(model), X, torch.full((2,), 301.0), {"cond": "a leaf"})
    assert [(t.tolist(), extra) for t, extra in told] == [([301.0, 301.0], {"cond": "a leaf"})]


def test_an_engine_that_changes_nothing_gives_the_model_s_own_noise():
    t = torch.full((2,), 601.0)
    torch.testing.assert_close(TIMESTEPS.estimate(TIMESTEPS.denoiser(noise_estimate), X, t, {}), noise_estimate(X, t), atol=1e-5, rtol=1e-5)


def test_levels_of_sigmas_are_the_last_steps_of_the_list():
    own = torch.linspace(10, 0, 11)
    assert SigmaCoordinates().levels(own, 10, 3).tolist() == own[6:].tolist()
    assert SigmaCoordinates().levels(own, 10, 9).tolist() == own.tolist()


def test_levels_of_timesteps_are_those_that_the_sampler_visits(host):
    sampler = host.sd_samplers.create_sampler("ddim", host.model)
    p = host.picture_job(steps=10, denoising_strength=0.6)
    total, last = host.sd_samplers_common.setup_img2img_steps(p, None)
    own = sampler.get_timesteps(p, total)
    visited = []

    def model(x, t, **extra):
        visited.append(int(t.max()))
        return x

    model.inner_model = sampler.model_wrap  # type: ignore[attr-defined]
    sampler.func(model, X, own[:last], extra_args={}, callback=lambda info: None)
    levels = TIMESTEPS.levels(own, total, last)
    assert levels.tolist() == pytest.approx([float(SIGMAS[t]) for t in [*visited, int(own[0])]])
    assert model_calls("DDIM", "ddim", levels.tolist()) == [1] * len(visited)


@pytest.mark.parametrize("coordinates", [SigmaCoordinates(), TIMESTEPS])
def test_without_an_exponent_the_list_stays_as_it_is(coordinates):
    own = torch.tensor([1, 101, 501, 999]) if coordinates is TIMESTEPS else torch.tensor([14.0, 3.0, 0.5, 0.0])
    assert torch.equal(coordinates.rescaled(own, 2.0, 0.0, FACTS.sigma_max), own)


def test_timesteps_are_rescaled_to_the_nearest_level():
    own = torch.arange(1, 1000, 100)
    wanted = scale_aware_sigmas(SIGMAS[own], 2.0, -0.5, FACTS.sigma_max)
    found = TIMESTEPS.rescaled(own, 2.0, -0.5, FACTS.sigma_max)
    assert found.dtype == own.dtype
    assert (found.diff() >= 0).all()
    assert (found < own).any()
    between = (SIGMAS[2:] / SIGMAS[:-2]).log().max()
    assert (SIGMAS[found][1:] / wanted[1:]).log().abs().max() <= between / 2 + 1e-9


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_level_and_nearest_are_each_other_s_inverse(t):
    assert TIMESTEPS.nearest(TIMESTEPS.level(torch.tensor([float(t), float(t)]))) == t


def test_noised_latents_stand_where_the_sampler_starts():
    z, noise, sigma = X, X.flip(0), float(SIGMAS[400])
    state, scaled = TIMESTEPS.noised(z, noise, sigma)
    alpha = float(TABLE[400])
    torch.testing.assert_close(state + sigma * scaled, alpha**0.5 * z + (1 - alpha) ** 0.5 * noise, atol=1e-5, rtol=1e-5)
    assert SigmaCoordinates().noised(z, noise, sigma) == (z, noise)


def test_coordinates_follow_the_sampler():
    assert isinstance(coordinates_of(ddim, TABLE), TimestepCoordinates)
    assert isinstance(coordinates_of("sample_euler", TABLE), SigmaCoordinates)


def test_every_sampler_of_k_diffusion_with_a_list_of_sigmas_is_taken(sampling):
    for name in CALLS_PER_STEP:
        check_sampler(name, f"sample_{name}", residual=True)
        check_sampler(name, getattr(sampling, f"sample_{name}"), residual=True)


@pytest.mark.parametrize("name", ["ddim", "ddim_cfgpp", "plms", "sample_lcm", "sample_heunpp2", "sample_ipndm", "sample_ipndm_v", "sample_deis"])
def test_the_host_s_own_samplers_are_taken(name):
    check_sampler(name, name, residual=True)


@pytest.mark.parametrize("name", FREE)
def test_samplers_that_choose_their_own_steps_are_refused_only_where_their_state_is_to_be_written(name):
    check_sampler("Shown", name, residual=False)
    with pytest.raises(ValueError, match=f"^sampler 'Shown' {FREE[name]}, where the skip residual cannot follow; turn the skip residual off, or use") as caught:
        check_sampler("Shown", name, residual=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unipc", "dpm_fast", "restart_sampler"])
def test_steps_of_such_a_sampler_are_told_by_the_noise_level(name):
    clock = clock_of(name, [4.0, 2.0, 1.0, 0.0], [1, 1, 1])
    steps = []
    for sigma in (4.0, 3.0, 1.5, 2.0, 0.5, 0.1):
        clock.tick(sigma)
        steps.append(clock.step)
    assert steps == [0, 0, 1, 1, 2, 2]
    clock.finish()


def test_between_timesteps_log_alpha_is_linear():
    t = torch.tensor([400.25, 400.25])
    alpha = math.exp(0.75 * math.log(TABLE[400]) + 0.25 * math.log(TABLE[401]))
    assert TIMESTEPS.level(t) == pytest.approx(math.sqrt((1 - alpha) / alpha), rel=1e-5)
    assert TIMESTEPS.level(torch.tensor([-0.5])) == float(SIGMAS[0])


@pytest.mark.parametrize(("name", "least"), [("unipc", 3), ("sample_dpm_fast", 2), ("sample_dpm_adaptive", 2)])
def test_what_such_a_sampler_needs_of_steps_is_said(name, least):
    assert len(model_calls("Shown", name, [float(k) for k in range(least, -1, -1)])) == least
    with pytest.raises(ValueError, match=f"gets {least - 1} steps to run, and needs {least}"):
        model_calls("Shown", name, [float(k) for k in range(least - 1, -1, -1)])


def test_unknown_samplers_are_refused():
    with pytest.raises(ValueError, match="sampler 'New one' is not one that this version knows"):
        check_sampler("New one", "sample_new", residual=False)


def test_the_key_is_the_function_s_name():
    assert [sampler_key(function) for function in ("sample_heun", "plms", ddim)] == ["heun", "plms", "ddim"]


@pytest.mark.parametrize(
    ("name", "sigmas", "calls"),
    [
        ("sample_euler", [3.0, 1.0, 0.0], [1, 1]),
        ("sample_heun", [3.0, 1.0, 0.0], [2, 1]),
        ("sample_heun", [3.0, 1.0, 0.1], [2, 2]),
        ("sample_lcm", [3.0, 1.0, 0.0], [1, 1]),
        ("sample_heunpp2", [3.0, 2.0, 1.0, 0.5, 0.0], [3, 3, 2, 1]),
        ("sample_heunpp2", [3.0, 0.0], [1]),
        ("sample_ipndm", [3.0, 1.0, 0.0], [1, 1]),
        ("sample_ipndm_v", [3.0, 1.0, 0.1], [1, 1]),
        ("sample_deis", [3.0, 1.0, 0.0], [1, 1]),
        ("ddim", [3.0, 1.0, 0.1], [1, 1]),
        ("plms", [3.0, 1.0, 0.5, 0.1], [2, 1, 1]),
    ],
)
def test_model_calls(name, sigmas, calls):
    assert model_calls(name, name, sigmas) == calls


@pytest.mark.parametrize("name", ["sample_euler", "ddim"])
def test_a_run_without_a_step_is_refused(name):
    with pytest.raises(ValueError, match="gets no step to run"):
        model_calls("Shown", name, [1.0])


def test_a_sampler_that_needs_more_steps_is_refused():
    with pytest.raises(ValueError, match="needs at least 2 steps"):
        model_calls("DPM++ 2M SDE", "sample_dpmpp_2m_sde", [1.0, 0.0])


@pytest.mark.parametrize("name", [*CALLS_PER_STEP, "ddim", "plms", "unipc", "dpm_fast"])
def test_samplers_call_their_model_as_counted(host, name):
    p = host.picture_job(init_images=[], steps=6, sampler_name=name, extra_generation_params={})
    sampler = host.sd_samplers.create_sampler(name, host.model)
    p.seeds = [1]
    p.rng = host.rng.ImageRNG((4, 8, 8), [1])
    coordinates = coordinates_of(sampler.funcname, host.model.alphas_cumprod)
    total, last = host.sd_samplers_common.setup_img2img_steps(p, None)
    levels = coordinates.levels(getattr(sampler, coordinates.getter)(p, total), total, last).tolist()
    (c, uc), image = p.conditioning([p.prompt], p.steps), torch.zeros(1, 5, 1, 1)
    sampler.sample_img2img(p, X[:1, :, :8, :8], X[1:, :, :8, :8], c, uc, image_conditioning=image)
    assert len(host.model.calls) == sum(model_calls(name, sampler.funcname, levels))
    assert all(math.isfinite(level) for level in levels)
