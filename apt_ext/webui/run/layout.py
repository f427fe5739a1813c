"""A pass before it runs: its plan, from the host's own schedule and sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modules import sd_samplers, sd_samplers_common, shared
from torch import Tensor

from apt_ext.core.borders import NOWHERE
from apt_ext.core.plan import PhaseSetup, Plan, make_plan
from apt_ext.core.types import Around, ModelFacts, Size
from apt_ext.options import Options, beside_mask, has_residual
from apt_ext.webui.hosts.checkpoint import family_of, native_side
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.model import FAMILIES, facts_of
from apt_ext.webui.run.coordinates import Coordinates, SigmaCoordinates
from apt_ext.webui.run.samplers import REMEDY, check_flow_sampler, check_sampler, chooses_levels, coordinates_of, knobs_of, levels_of, model_calls

__all__ = ["Layout", "lay_out", "sampler_named"]

MOST_STEPS = 100_000  # of a whole schedule, which a hires pass makes as long as its steps divided by the denoising strength
JITTER_SEED = 0  # the same windows for every picture, or a picture in a batch would differ from the same one alone


@dataclass(frozen=True)
class Layout:
    """A pass before it runs.

    Attributes:
        plan: of the phases. `start`: (rows, columns) that it begins at. `facts`: of the checkpoint.
        coordinates: of the sampler. `called`: those that the host calls its model in. `own`: the sampler's own list of noise levels.
        total, last: see `Coordinates.levels`.
    """

    plan: Plan
    start: Size
    facts: ModelFacts
    coordinates: Coordinates
    called: Coordinates
    own: Tensor
    total: int
    last: int


def sampler_named(name: str, p: Any) -> Any:
    """One of the host's samplers, for the loaded checkpoint, with the noise levels that a pass will have. Nothing samples with it.

    Args:
        p: the processing object, of the pass as `lay_out` wants it.

    Raises:
        ValueError: for one that does not exist or does not go with the checkpoint.
    """
    try:
        sampler = sd_samplers.create_sampler(name, shared.sd_model)
    except Exception as error:  # the host says so by an assertion, or by an exception of no kind of its own
        raise ValueError(
            f"sampler {name!r} cannot be used with this checkpoint, or does not exist; choose another (in the API also hr_sampler_name)"
        ) from error
    host().foresee_levels(sampler, p)
    return sampler


def lay_out(p: Any, sampler: Any, options: Options, start: Size, target: Size, steps: int | None, around: Around = NOWHERE) -> Layout:
    """Everything about a pass that is known before it begins.

    Args:
        p: the processing object; its denoising strength and its schedule are the pass's.
        sampler: an instance of the host's.
        start, target: (rows, columns) in latent pixels.
        steps: the hires pass's steps; None for img2img, where the denoising strength takes its share of `p.steps`.
        around: the axes along which the picture is seamless.

    Raises:
        ValueError: where something of it cannot be done.
    """
    check_sampler(sampler.config.name, sampler.funcname, has_residual(options))
    model = shared.sd_model
    family = family_of(model)
    known = FAMILIES[family]
    flow = known.flow
    if options.regions and known.own_length:
        # In one call with longer ones a prompt would be stretched, which these networks see.
        raise ValueError(f"regions have no words of their own on {known.label} checkpoints, whose prompts differ in length; leave Regions empty")
    # As the host's sampler settles them when it begins: for churn the settings page before the job, for eta the other way round.
    opts = shared.opts
    churn = (float(opts.s_churn or p.s_churn), float(opts.s_tmin or p.s_tmin), float(opts.s_tmax or p.s_tmax))
    if flow:
        check_flow_sampler(sampler.config.name, sampler.funcname, churn[0], host().flow_samplers(model))
    knobs = knobs_of(sampler.config.name, sampler.funcname, float(opts.eta_ancestral if p.eta is None else p.eta), churn, flow)
    coordinates = coordinates_of(sampler.funcname, host().alphas_cumprod(model), host().whole_timesteps, flow)
    if not hasattr(sampler, coordinates.getter):  # Neo's UniPC goes by noise levels, elsewhere it goes by timesteps
        raise ValueError(f"sampler {sampler.config.name!r} is not one that this version knows; {REMEDY}")
    called = coordinates if flow or host().sampler_coordinates else SigmaCoordinates()
    table = host().noise_levels(sampler)
    facts = facts_of(family, coordinates.sigmas if table is None else table, native_side(model))  # type: ignore[attr-defined]
    if p.denoising_strength is None:
        raise ValueError("denoising strength is not given; it says how much of the schedule each phase runs, try 0.6")
    total, last = sd_samplers_common.setup_img2img_steps(p, steps)
    if total < 1:
        raise ValueError(f"denoising strength {p.denoising_strength} leaves no step to run; use one above 0")
    if total > MOST_STEPS:
        raise ValueError(f"denoising strength {p.denoising_strength} spreads the steps over a schedule of {total}; use a higher one")
    own = getattr(sampler, coordinates.getter)(p, total)
    sigmas = coordinates.levels(own, total, last)
    if coordinates.getter == SigmaCoordinates.getter and not flow:  # the settings page may let schedules begin above the checkpoint's own levels
        facts = facts._replace(sigma_max=max(facts.sigma_max, float(own.max())))
    calls = model_calls(sampler.config.name, sampler.funcname, sigmas.tolist())
    if getattr(p, "mask", None) is not None:
        options = beside_mask(options)

    def at(setup: PhaseSetup) -> list[list[float]]:
        phase = coordinates.levels(coordinates.rescaled(own, setup.phase.scale, options.gamma, facts.sigma_max), total, last)
        return levels_of(sampler.funcname, knobs, coordinates, phase.tolist())

    plan = make_plan(start, target, options, facts, sigmas, calls, JITTER_SEED, around, None if chooses_levels(sampler.funcname) else at)
    return Layout(plan, start, facts, coordinates, called, own, total, last)
