"""Whole jobs on a small denoiser: phases together, batches, seeds, interruption."""

import dataclasses

import pytest
import torch

from apt_ext.core.clock import evaluations_per_step
from apt_ext.core.cost import job_cost, phase_views
from apt_ext.core.phases import plan_phases
from apt_ext.core.schedule import discrete_timestep
from apt_ext.core.statistics import mean_std, statistics_shift
from apt_ext.core.upscale import ModelFacts, enlarge, finish_phase, start_phase, upscale
from apt_ext.demo.model import alphas_cumprod
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options, published

SIGMAS = ((1 - alphas_cumprod()) / alphas_cumprod()) ** 0.5
FACTS = ModelFacts((8, 8), 2, float(SIGMAS[-1]), discrete_timestep(SIGMAS))
WEIGHT = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.15


def far(**given):
    """Settings that begin high enough for every path and the residual to act."""
    return Options(**{"shortcut": 0.6, "gamma": 0.0, **given})


def denoiser(x, sigma, **extra):
    """Looks at its neighbours and at the noise level, as a network would; every sample by itself."""
    scale = (1 + sigma**2).rsqrt()[:, None, None, None].to(x.dtype)
    return torch.tanh(torch.nn.functional.conv2d(x * scale, WEIGHT.to(x.dtype), padding=1)) + 0.3 * x * scale


def noise_for(seeds):
    def noise(phase, shape):
        return torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed * 100 + phase.number)) for seed in seeds])

    return noise


def run(z, options, seeds, *, steps_seed=3, sampler="euler", target=(20, 24), **hooks):
    phases = plan_phases((8, 10), (8, 10), target)
    return upscale(
        denoiser,
        z,
        z,
        phases,
        options,
        FACTS,
        sampler=lambda number: make_sampler(sampler, [seed * 10 + number for seed in seeds]),
        evaluations=evaluations_per_step(sampler),
        sigmas=make_sigmas("karras", options.steps, SIGMAS),
        noise=noise_for(seeds),
        seed=steps_seed,
        **hooks,
    )


@pytest.fixture
def latent():
    return torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["multidiffusion", "demofusion", "accdiffusion"])
@pytest.mark.parametrize("apt", [True, False])
def test_every_method_reaches_the_target_reproducibly(latent, method, apt):
    options = far(method=method, steps=6)
    options = options if apt else published(options)
    one, two = (run(latent, options, [1, 2]) for _ in range(2))
    assert one.shape == (2, 4, 20, 24)
    assert torch.isfinite(one).all()
    assert torch.equal(one, two)
    assert not torch.allclose(one, run(latent, options, [3, 4]))


@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
def test_the_engine_leaves_the_global_generator_alone(latent, method):
    """With a sampler that draws nothing: k-diffusion's Euler draws churn noise even where it uses none."""
    before = torch.random.get_rng_state()
    run(latent, far(method=method, steps=6), [1, 2], sampler="dpmpp_2m")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_pictures_of_a_batch_do_not_know_each_other(latent, sampler):
    options = far(steps=6, gamma=-0.25)
    together = run(latent, options, [1, 2], sampler=sampler)
    for k, seed in enumerate((1, 2)):
        alone = run(latent[k : k + 1], options, [seed], sampler=sampler)
        torch.testing.assert_close(together[k : k + 1], alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
def test_window_batch_does_not_change_the_picture(latent, method):
    results = [run(latent, far(method=method, steps=6, window_batch=n), [1, 2]) for n in (1, 5, 64)]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, atol=2e-4, rtol=0)


def test_seed_of_the_engine_moves_the_windows(latent):
    options = far(steps=6)
    assert not torch.equal(run(latent, options, [1, 2], steps_seed=3), run(latent, options, [1, 2], steps_seed=4))
    still = far(steps=6, jitter=0.0)
    assert torch.equal(run(latent, still, [1, 2], steps_seed=3), run(latent, still, [1, 2], steps_seed=4))


@pytest.mark.parametrize(("sampler", "tolerance"), [("euler", 0.02), ("dpmpp_2m", 0.02), ("euler", 0.0)])
@pytest.mark.parametrize(("every", "shortcut"), [(1, 0.6), (3, 0.6), (2, 1.0)])
def test_the_plan_counts_what_the_run_evaluates(latent, sampler, tolerance, every, shortcut):
    options = far(steps=9, tolerance=tolerance, border="over", overlap=0.25, dilated_every=every, shortcut=shortcut)
    reports = []
    run(latent, options, [1, 2], sampler=sampler, on_finished=reports.append)
    phases = [r.phase for r in reports]
    costs = job_cost(phases, options, FACTS, make_sigmas("karras", options.steps, SIGMAS), evaluations_per_step(sampler), seed=3)
    assert [c.evaluations for c in costs] == [r.evaluations for r in reports]


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde"])
def test_the_plan_of_samplers_with_two_calls_is_off_by_one_call_at_most(latent, sampler):
    """Their second call's noise level is not known beforehand; it matters only where a path falls under the tolerance."""
    reports, options = [], far(steps=9)
    run(latent, options, [1, 2], sampler=sampler, on_finished=reports.append)
    sigmas = make_sigmas("karras", options.steps, SIGMAS)
    costs = job_cost([r.phase for r in reports], options, FACTS, sigmas, evaluations_per_step(sampler), seed=3)
    for cost, report in zip(costs, reports, strict=True):
        a_call_each = phase_views(report.phase, options, FACTS, sigmas, 1, seed=3)
        assert abs(cost.evaluations - report.evaluations) <= max(max(views) for views in a_call_each)
        assert report.evaluations > 1.5 * (cost.steps - 1) * report.phase.dilation[0]


def test_hooks_see_phases_steps_and_views_and_may_stop(latent):
    seen, reports = [], []

    def stop_in_phase_two(_):
        if len(reports) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            latent,
            far(steps=6, shortcut=0.6),
            [1, 2],
            target=(32, 40),
            on_phase=lambda phase, start: seen.append((phase.size, len(start.sigmas) - 1)),
            on_step=lambda info: seen.append(info["i"]),
            on_views=stop_in_phase_two,
            on_finished=reports.append,
        )
    assert seen[0] == ((16, 20), 4)
    assert seen[1:5] == [0, 1, 2, 3]
    assert reports[0].latent.shape == (2, 4, 16, 20), "a finished phase has been handed over before the stop"


def test_matching_undoes_what_enlarging_does_to_the_statistics(latent):
    (phase,) = plan_phases((8, 10), (8, 10), (24, 30), "direct")
    sigmas = make_sigmas("karras", 10, SIGMAS)
    up = enlarge(latent, phase.size)
    off, on = (start_phase(up, latent, phase, far(matching=m, shortcut=0.5, steps=10), sigmas, FACTS) for m in (0.0, 1.0))
    assert off.before["std"] < 0.9
    assert off.after == off.before
    assert on.after["std"] == pytest.approx(1, abs=1e-4)
    assert on.after["mean"] < 1e-4
    assert torch.equal(on.sigmas, sigmas[5:])


def test_gamma_acts_on_the_noise_levels_and_auto_measures_it(latent):
    (phase,) = plan_phases((8, 10), (8, 10), (32, 40), "direct")
    sigmas = make_sigmas("karras", 10, SIGMAS)
    up = enlarge(latent, phase.size)
    less = start_phase(up, latent, phase, far(gamma=-0.5, shortcut=1.0, steps=10), sigmas, FACTS).sigmas
    assert float(less[0]) == pytest.approx(float(sigmas[0]), rel=1e-5)
    assert (less[1:-1] < sigmas[1:-1]).all()
    assert float(less[-2] / sigmas[-2]) == pytest.approx(4**-0.5, rel=1e-3)
    measured = start_phase(up[:1], latent[:1], phase, far(gamma="auto", steps=10), sigmas, FACTS).gamma
    assert -1 < measured < 0  # fewer contrasts inside a window of an enlarged latent


def test_a_phase_is_reanchored_unless_the_options_or_multidiffusion_say_otherwise(latent):
    z = latent * 1.7 + 0.4
    for options, expected in (
        (far(), True),
        (far(method="accdiffusion", matching=0.0), True),
        (far(reanchor="off"), False),
        (far(matching=0.0, reanchor="off"), False),
        (far(method="multidiffusion"), False),
        (far(method="multidiffusion", reanchor="on"), True),
    ):
        done = finish_phase(z, latent, options)
        assert torch.equal(done, z) != expected
        if expected:
            for got, wanted in zip(mean_std(done), mean_std(latent), strict=True):
                torch.testing.assert_close(got, wanted)


def test_the_shortcut_runs_its_share_of_the_steps(latent):
    calls = []
    run(latent, far(steps=50, shortcut=0.6), [1, 2], target=(16, 20), on_step=lambda info: calls.append(info["i"]))
    assert len(calls) == 30


def test_statistics_shift_is_in_units_of_the_reference(latent):
    shift = statistics_shift(latent * 0.5 + 3, latent)
    stds = mean_std(latent, (2, 3))[1]
    means = mean_std(latent, (2, 3))[0]
    assert shift["std"] == pytest.approx(0.5, rel=1e-5)
    assert shift["mean"] == pytest.approx(float(((0.5 * means + 3 - means) / stds).abs().max()), rel=1e-5)


def test_options_of_the_base_method_alone():
    plain = published(Options(gamma=-0.5))
    assert (plain.matching, plain.gamma, plain.shortcut) == (0, 0, 1)
    assert (plain.upscaler, plain.hold, plain.colour_fix) == ("latent", 0, 0)
    usual = Options()
    assert published(Options(method="multidiffusion")).shortcut == usual.shortcut
    back = {name: getattr(usual, name) for name in ("matching", "shortcut", "upscaler", "hold", "colour_fix")}
    assert dataclasses.replace(plain, gamma=-0.5, **back) == Options(gamma=-0.5)


def test_auto_gamma_is_refused_for_a_batch_and_taken_for_one(latent):
    with pytest.raises(ValueError, match="gamma 'auto' is measured on one picture at a time, not on a batch of 2"):
        run(latent, far(steps=6, gamma="auto"), [1, 2])
    assert run(latent[:1], far(steps=6, gamma="auto"), [1]).shape == (1, 4, 20, 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
def test_half_precision_jobs_stay_near_the_full_one(latent, method, dtype):
    """Statistics and fusion are in float32, the latents that go from phase to phase in the model's own precision."""
    options = far(method=method, steps=8, matching=0.5, reanchor="on")
    reports = []
    full = run(latent, options, [1, 2])
    half = run(latent.to(dtype), options, [1, 2], target=(20, 24), on_finished=reports.append)
    assert half.dtype == dtype
    assert {report.latent.dtype for report in reports} == {dtype}
    assert float((half.float() - full).abs().mean()) < (0.02 if dtype is torch.float16 else 0.12) * float(full.std())
