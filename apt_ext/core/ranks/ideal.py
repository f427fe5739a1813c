"""How much faster a job can become on several processes, by counting: what they cannot share evenly, some of them wait for."""

from __future__ import annotations

from apt_ext.core.plan import Plan
from apt_ext.core.views import even_batches

__all__ = ["ideal_speedup"]


def _in_turn(views: int, batch: int, ranks: int) -> int:
    """Views that the busiest process of each round evaluates, over all rounds of one call of a path."""
    sizes = [part.stop - part.start for part in even_batches(views, batch)]
    return sum(max(sizes[k : k + ranks]) for k in range(0, len(sizes), ranks))


def ideal_speedup(plan: Plan, ranks: int) -> float:
    """All views of a job over those that have to be evaluated one after the other by so many processes.

    A view is taken to cost the same in a batch of any size; nothing but the views costs anything.
    """
    turns = 0
    for setup, steps in zip(plan.setups, plan.views, strict=True):
        for step, calls in zip(steps, plan.calls, strict=True):
            turns += sum(calls * _in_turn(views // calls, setup.options.window_batch, ranks) for views in step)
    return plan.evaluations / max(1, turns)
