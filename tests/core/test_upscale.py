"""Whole jobs on a small denoiser: phases together, batches, seeds, interruption."""

import dataclasses
from typing import Any

import pytest
import torch

from apt_ext.core.call_levels import call_levels
from apt_ext.core.clock import CALLS_PER_STEP, sampler_calls, step_calls
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import make_plan
from apt_ext.core.statistics import mean_std, statistics_shift
from apt_ext.core.upscale import enlarge, sample_with, start_phase, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import METHODS, Options, Preset, Schedule, published, reanchors
from tests.core.small_model import FACTS, SIGMAS, noise_for

WEIGHT = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.15


def far(strength=0.6, **given):
    """Settings that begin high enough for every path and the residual to act, and the schedule of six steps."""
    own: dict[str, Any] = {name: given.pop(name) for name in ("steps", "sampler", "spacing") if name in given}
    own = {"steps": 6, "strength": strength, "sampler": "euler", **own}
    return Preset(Options(**{"gamma": 0.0, **given}), Schedule(**own))


def denoiser(x, sigma, **extra):
    """Looks at its neighbours and at the noise level, as a network would; every sample by itself."""
    scale = (1 + sigma**2).rsqrt()[:, None, None, None].to(x.dtype)
    return torch.tanh(torch.nn.functional.conv2d(x * scale, WEIGHT.to(x.dtype), padding=1)) + 0.3 * x * scale


def plan_of(job, target=(20, 24), seed=3):
    own = job.schedule
    sigmas = shortcut_sigmas(make_sigmas(own.spacing, own.steps, SIGMAS), own.strength)
    calls = step_calls(sigmas.tolist(), sampler_calls(own.sampler))
    return make_plan((8, 10), target, job.options, FACTS, sigmas, calls, seed, levels=lambda setup: call_levels(own.sampler, setup.levels(sigmas).tolist()))


def run(z, job, seeds, *, steps_seed=3, target=(20, 24), on_views=lambda count: None, on_step=lambda info: None, **hooks):
    plan = plan_of(job, target, steps_seed)
    sample = sample_with(
        ViewCalls(denoiser, job.options.window_batch, on_views=on_views),
        lambda phase: make_sampler(job.schedule.sampler, [seed * 10 + phase.number for seed in seeds]),
        noise_for(seeds),
        model_calls=plan.calls,
        on_step=on_step,
    )
    return upscale(z, z, plan, sample, **hooks)


def counted(z, job):
    """The plan, and the views that a run of it evaluates in each phase."""
    made = [0]
    run(z, job, [1, 2], on_views=lambda count: made.__setitem__(-1, made[-1] + count), on_finished=lambda *_: made.append(0))
    return plan_of(job), made[:-1]


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
    run(latent, far(method=method, sampler="dpmpp_2m"), [1, 2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_pictures_of_a_batch_do_not_know_each_other(latent, sampler):
    options = far(sampler=sampler, gamma=-0.25)
    together = run(latent, options, [1, 2])
    for k, seed in enumerate((1, 2)):
        alone = run(latent[k : k + 1], options, [seed])
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", CALLS_PER_STEP)
def test_the_plan_counts_what_the_run_evaluates(latent, sampler, method):
    """Also where the two calls of a step lie on either side of the level at which a path falls under the tolerance."""
    for strength, gamma, tolerance in [(0.6, 0.0, 0.1), (1.0, 0.75, 0.1), (1.0, -0.5, 0.0)]:
        options = {"method": method, "gamma": gamma, "tolerance": tolerance, "border": "over", "overlap": 0.25, "word_threshold": 0.0}
        plan, ran = counted(latent, far(strength, steps=9, sampler=sampler, **options))
        assert [sum(total) for total in plan.totals] == ran
        assert plan.evaluations == sum(ran) > 0


def test_hooks_see_phases_steps_and_views_and_may_stop(latent):
    seen: list[object] = []
    reports = []

    def stop_in_phase_two(_):
        if len(reports) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            latent,
            far(),
            [1, 2],
            target=(32, 40),
            on_start=lambda setup, start: seen.append((setup.phase.size, len(start.sigmas) - 1)),
            on_step=lambda info: seen.append(info["i"]),
            on_views=stop_in_phase_two,
            on_finished=lambda setup, start, latent: reports.append(latent),
        )
    assert seen[0] == ((16, 20), 4)
    assert seen[1:5] == [0, 1, 2, 3]
    assert reports[0].shape == (2, 4, 16, 20), "a finished phase has been handed over before the stop"


def begun(latent, target, job):
    """The start of a job's only phase, and the schedule that it is cut from."""
    (setup,) = plan_of(job, target).setups
    return start_phase(enlarge(latent, target), latent, setup, plan_of(job, target).sigmas)


def test_matching_undoes_what_enlarging_does_to_the_statistics(latent):
    off, on = (begun(latent, (24, 30), far(0.5, matching=m, phases="direct", steps=10)) for m in (0.0, 1.0))
    assert off.before["std"] < 0.9
    assert off.after == off.before
    assert on.after["std"] == pytest.approx(1, abs=1e-4)
    assert on.after["mean"] < 1e-4
    assert torch.equal(on.sigmas, make_sigmas("karras", 10, SIGMAS)[5:])


def test_gamma_acts_on_the_noise_levels(latent):
    sigmas = make_sigmas("karras", 10, SIGMAS)
    less = begun(latent, (32, 40), far(1.0, gamma=-0.5, phases="direct", steps=10)).sigmas
    assert float(less[0]) == pytest.approx(float(sigmas[0]), rel=1e-5)
    assert (less[1:-1] < sigmas[1:-1]).all()
    assert float(less[-2] / sigmas[-2]) == pytest.approx(4**-0.5, rel=1e-3)


def test_weights_are_taken_before_the_schedule_is_scaled(latent):
    """The same step weighs the same, whatever the scale makes of its level."""
    job = far(1.0, gamma=0.75, steps=10)
    plan = plan_of(job)
    for setup in plan.setups:
        for sigma, scaled in zip(plan.sigmas[:-1].tolist(), setup.levels(plan.sigmas)[:-1].tolist(), strict=True):
            assert setup.weights(scaled) == pytest.approx(setup.weights_before(sigma), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"method": "accdiffusion", "matching": 0.0}, True),
        ({"reanchor": "off"}, False),
        ({"matching": 0.0, "reanchor": "off"}, False),
        ({"method": "multidiffusion"}, False),
        ({"method": "multidiffusion", "reanchor": "on"}, True),
    ],
)
def test_a_phase_is_reanchored_unless_the_options_or_multidiffusion_say_otherwise(latent, options, expected):
    plan = plan_of(far(phases="direct", **options))
    done = upscale(latent, latent, plan, lambda setup, start: start.z_up * 1.7 + 0.4)
    statistics = [torch.allclose(got, wanted, atol=1e-5) for got, wanted in zip(mean_std(done), mean_std(latent), strict=True)]
    assert statistics == [expected] * 2
    assert reanchors(Options(**options)) == expected


def test_the_shortcut_runs_its_share_of_the_steps(latent):
    calls = []
    run(latent, far(steps=50), [1, 2], target=(16, 20), on_step=lambda info: calls.append(info["i"]))
    assert len(calls) == 30


def test_statistics_shift_is_in_units_of_the_reference(latent):
    shift = statistics_shift(latent * 0.5 + 3, latent)
    stds = mean_std(latent, (2, 3))[1]
    means = mean_std(latent, (2, 3))[0]
    assert shift["std"] == pytest.approx(0.5, rel=1e-5)
    assert shift["mean"] == pytest.approx(float(((0.5 * means + 3 - means) / stds).abs().max()), rel=1e-5)


def test_options_of_the_base_method_alone():
    plain, usual = published(Preset(Options(gamma=-0.5))), Preset()
    assert (plain.options.matching, plain.options.gamma, plain.schedule.strength) == (0, 0, 1)
    assert (plain.options.upscaler, plain.options.colour_fix) == ("latent", 0)
    assert published(Preset(Options(method="multidiffusion"))).schedule == usual.schedule
    back = {name: getattr(usual.options, name) for name in ("matching", "upscaler", "colour_fix")}
    assert dataclasses.replace(plain.options, gamma=-0.5, **back) == Options(gamma=-0.5)


def halves_convolve():
    """Whether this torch has float16 convolutions on the CPU: 2.1 has none."""
    try:
        torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3).half(), torch.zeros(1, 1, 3, 3).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["demofusion", "accdiffusion"])
def test_half_precision_jobs_stay_near_the_full_one(latent, method, dtype):
    """Statistics and fusion are in float32, the latents that go from phase to phase in the model's own precision."""
    if dtype is torch.float16 and not halves_convolve():
        pytest.skip("this torch has no float16 convolutions on the CPU")
    options = far(method=method, steps=8, matching=0.5, reanchor="on")
    reports = []
    full = run(latent, options, [1, 2])
    half = run(latent.to(dtype), options, [1, 2], target=(20, 24), on_finished=lambda setup, start, latent: reports.append(latent))
    assert half.dtype == dtype
    assert {latent.dtype for latent in reports} == {dtype}
    assert float((half.float() - full).abs().mean()) < (0.02 if dtype is torch.float16 else 0.12) * float(full.std())


def test_a_jobs_windows_are_as_large_as_asked_for_and_its_scale_stays_the_models(latent):
    job = far(method="multidiffusion", phases="direct", window="96x64")
    (setup,) = plan_of(job).setups
    assert {(window.height, window.width) for step in range(6) for window in setup.windows(step)} == {(8, 12)}
    assert setup.phase.scale == plan_of(far(method="multidiffusion", phases="direct")).setups[0].phase.scale
    seen = []

    def heard(x, sigma, **extra):
        seen.append(tuple(x.shape[-2:]))
        return denoiser(x, sigma, **extra)

    sample = sample_with(ViewCalls(heard), lambda phase: make_sampler("euler", [1]), noise_for([1, 2]), model_calls=plan_of(job).calls)
    upscale(latent, latent, plan_of(job), sample)
    assert set(seen) == {(8, 12)}


def test_a_window_larger_than_the_picture_is_cut_to_it():
    (setup,) = plan_of(far(method="multidiffusion", phases="direct", window="192x160")).setups
    assert setup.windows(0) == [(0, 0, 20, 24)]


@pytest.mark.parametrize(("window", "fits"), [("100x64", "96x64"), ("64x7", "64x16")])
def test_a_window_that_the_model_cannot_take_is_refused(window, fits):
    with pytest.raises(ValueError, match=f"Window '{window}' does not fit this model, whose windows have sides that are multiples of 16 pixels; use {fits}"):
        plan_of(far(window=window))
