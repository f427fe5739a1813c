"""What several processes gain: `python -m bench.speed.ranks` times them with a model of known cost, and counts what is possible."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from apt_ext.core.clock import sampler_calls, step_calls
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import Plan, make_plan
from apt_ext.core.ranks.ideal import ideal_speedup
from apt_ext.core.ranks.launch import joined, place_of
from apt_ext.core.ranks.ranks import Ranks
from apt_ext.core.upscale import sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options, Preset, Schedule, preset_named
from bench.speed.stand_in import StandIn, stable_diffusion
from bench.tables import table

__all__ = ["counted", "main", "plan_of", "timed"]

WINDOW = 128  # SDXL's, in latent pixels of 8 x 8 pixels
VIEW_SECONDS = (0.05, 0.2)
RANKS = (2, 4, 8)
BATCHES = (1, 2, 4, 16)
TIMED = Preset(Options(phases="direct", tolerance=0.0, window_batch=1), Schedule(steps=4, strength=1.0, sampler="euler", spacing="normal"))


def plan_of(preset: Preset, scale: int) -> Plan:
    """Of a square SDXL picture of 1024 pixels."""
    facts, sigmas = stable_diffusion(WINDOW)
    own = preset.schedule
    levels = shortcut_sigmas(make_sigmas(own.spacing, own.steps, sigmas), own.strength)
    calls = step_calls(levels.tolist(), sampler_calls(own.sampler))
    return make_plan((WINDOW, WINDOW), (WINDOW * scale, WINDOW * scale), preset.options, facts, levels, calls)


class Sleeper(StandIn):
    """A stand-in that takes its time for every view, as a GPU would: without the processor."""

    def __init__(self, view_seconds: float) -> None:
        super().__init__()
        self.view_seconds = view_seconds

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        time.sleep(self.view_seconds * x.shape[0])
        return super().__call__(x, sigma, **extra)


def timed(ranks: Ranks, view_seconds: float, scale: int = 4) -> dict[str, Any]:
    """One phase from 1024 pixels, both paths at every step; what the first process measured."""
    plan, model = plan_of(TIMED, scale), Sleeper(view_seconds)
    base = torch.randn((1, 4, WINDOW, WINDOW), generator=torch.Generator().manual_seed(0))
    sample = sample_with(
        ViewCalls(model, TIMED.options.window_batch, deal=ranks.map),
        lambda phase: make_sampler("euler", [0]),
        lambda phase, shape: torch.randn(shape, generator=torch.Generator().manual_seed(1)),
        model_calls=plan.calls,
    )
    with ranks.together(), torch.no_grad():
        ranks.numbers(0)  # all begin at once
        started = time.perf_counter()
        out = upscale(base, base, plan, sample)
        seconds = time.perf_counter() - started
        ranks.check_alike(out)
        return {"ranks": ranks.count, "seconds": seconds, "by_rank": ranks.numbers(model.rows), "sum": float(out.double().sum())}


def _started(count: int, view_seconds: float) -> dict[str, Any]:
    """`timed` in so many processes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "bench.speed.ranks", "--one", str(view_seconds)]
    made = [subprocess.Popen(command, env={**common, "RANK": str(k), "LOCAL_RANK": str(k)}, stdout=subprocess.PIPE, text=True) for k in range(count)]
    said = [process.communicate()[0] for process in made]
    return dict(json.loads(said[0]))


def counted() -> dict[str, str]:
    """Tables of what can be gained: all views over those that one process after the other has to evaluate."""
    made = {}
    for title, scale in (("1024 to 4096 px", 4), ("1024 to 16384 px", 16)):
        rows = []
        for name in ("Fast", "Balanced", "Quality"):
            preset = preset_named(name)
            for batch in BATCHES:
                own = Preset(Options(**{**vars(preset.options), "window_batch": batch}), preset.schedule)
                plan = plan_of(own, scale)
                rows.append([name, batch, plan.evaluations, *(round(ideal_speedup(plan, n), 2) for n in RANKS)])
        made[title] = table(("preset", "window batch", "evaluations", *(f"{n} processes" for n in RANKS)), rows)
    return made


def main(arguments: list[str]) -> int:
    """Print the tables of docs/scale.md."""
    if arguments[:1] == ["--one"]:
        with joined(place_of(os.environ)) as ranks:
            found = timed(ranks, float(arguments[1]))
            if ranks.first:
                print(json.dumps(found))
        return 0
    plan = plan_of(TIMED, 4)
    for view_seconds in VIEW_SECONDS:
        runs = [min((_started(n, view_seconds) for _ in range(2)), key=lambda run: float(run["seconds"])) for n in (1, 2, 3, 4)]
        assert len({run["sum"] for run in runs}) == 1
        rows = []
        for run in runs:
            count, gain = run["ranks"], runs[0]["seconds"] / run["seconds"]
            rows.append([count, round(run["seconds"], 1), ", ".join(map(str, run["by_rank"])), round(gain, 2), round(ideal_speedup(plan, count), 2)])
        print(f"## {view_seconds} s per view, {plan.evaluations} views\n")
        print(table(("processes", "seconds", "views of each", "times as fast", "by count"), rows), end="\n\n", flush=True)
    for title, made in counted().items():
        print(f"## {title}\n\n{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
