"""Whole jobs on a small denoiser, as several processes run them: `python -m tests.core.rank_jobs COMMAND FOLDER`, started once for each rank."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from apt_ext.core.clock import FREE_SAMPLERS, sampler_calls, step_calls
from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.core.plan import Plan, make_plan
from apt_ext.core.ranks.launch import joined, place_of
from apt_ext.core.ranks.ranks import ALONE, Ranks
from apt_ext.core.ranks.status import OutOfMemory
from apt_ext.core.tiles.autoencoder import run_in_tiles
from apt_ext.core.tiles.map import map_tiles
from apt_ext.core.upscale import sample_with, upscale
from apt_ext.core.views import ViewCalls
from apt_ext.demo.samplers import make_sampler, make_sigmas
from apt_ext.options import Options, Schedule, has_residual
from tests.core.small_model import FACTS, SIGMAS, noise_for

METHODS = ("multidiffusion", "demofusion", "accdiffusion")
SAMPLERS = ("euler", "heun", "euler_ancestral", "dpmpp_sde", "dpmpp_2m", "dpm_adaptive")  # one call, two, ancestral, Brownian, multistep, adaptive
BATCHES = (1, 3, 8)
# Each two of a method, a sampler and a batch meet in one case at least, and with one of the pairs each batch does.
PAIRED = {(method, sampler, BATCHES[(i + k) % len(BATCHES)]) for (i, method), (k, sampler) in product(enumerate(METHODS), enumerate(SAMPLERS))}
CASES = sorted(PAIRED | {("demofusion", "euler", batch) for batch in BATCHES})
WEIGHT = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.15
DECODER = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.Upsample(scale_factor=2), torch.nn.GroupNorm(4, 4), torch.nn.Tanh()).eval()
LATENT = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(5))


def denoiser(x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
    """Looks at its neighbours, at the noise level, and, in the last bits, at who shares its batch, as a network does."""
    scale = (1 + sigma**2).rsqrt()[:, None, None, None]
    alone = torch.tanh(torch.nn.functional.conv2d(x * scale, WEIGHT, padding=1)) + 0.3 * x * scale
    return alone * (1 + 1e-6 * float(x.std()))


def plan_of(method: str, sampler: str, batch: int, phases: str = "direct") -> Plan:
    own = Options(method=method, gamma=0.0, tolerance=0.02, window_batch=batch, skip_residual=sampler not in FREE_SAMPLERS, phases=phases)
    schedule = Schedule(steps=5, strength=0.6, sampler=sampler)
    sigmas = shortcut_sigmas(make_sigmas(schedule.spacing, schedule.steps, SIGMAS), schedule.strength)
    return make_plan((8, 10), (20, 24), own, FACTS, sigmas, step_calls(sigmas.tolist(), sampler_calls(sampler, has_residual(own))), seed=3)


def run(ranks: Ranks, method: str, sampler: str, batch: int, model: Any = denoiser, phases: str = "direct", **hooks: Any) -> torch.Tensor:
    plan = plan_of(method, sampler, batch, phases)
    sample = sample_with(
        ViewCalls(model, batch, deal=ranks.map),
        lambda phase: make_sampler(sampler, [seed * 10 + phase.number for seed in (1, 2)]),
        noise_for([1, 2]),
        model_calls=None if sampler in FREE_SAMPLERS else plan.calls,
    )
    with torch.no_grad():
        return upscale(LATENT, LATENT, plan, sample, **hooks)


def worlds(ranks: Ranks) -> Iterator[tuple[int, Ranks]]:
    """1 to 4 of the four processes, as worlds of their own; those that are left out wait for the next one."""
    for count in range(4, 1, -1):
        control, data = (dist.new_group(list(range(count)), backend="gloo") for _ in range(2))
        if ranks.rank < count:
            yield count, Ranks(ranks.rank, count, control, data)
    if ranks.rank == 3:
        yield 1, ALONE


def alike(ranks: Ranks, folder: Path) -> None:
    """Every case in every world, and a picture decoded in tiles; each process writes down what it got."""
    for count, world in worlds(ranks):
        calls = [0]

        def counted(x: torch.Tensor, sigma: torch.Tensor, calls: list[int] = calls, **extra: Any) -> torch.Tensor:
            calls[0] += 1
            return denoiser(x, sigma, **extra)

        with world.together():
            found: dict[str, Any] = {" ".join(map(str, case)): run(world, *case, model=counted) for case in CASES}
            picture = torch.randn(1, 4, 40, 56, generator=torch.Generator().manual_seed(9))
            for tile in (16, 64):
                found[f"tiles {tile}"] = map_tiles(lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2), picture, 2, tile=tile, halo=6, deal=world.map)
            found["decoded"] = run_in_tiles(DECODER, DECODER, picture, Fraction(2), tile=16, halo=6, deal=world.map)
            half = list(world.map(lambda k: torch.full((k, 3), k, dtype=torch.bfloat16), [1, 2, 3, 4, 5]))
            assert [tuple(each.shape) for each in half] == [(k, 3) for k in range(1, 6)]
            found["half"] = torch.cat(half)
            last = picture.to(memory_format=torch.channels_last)
            (kept, cut, number) = world.map(lambda x: x, [last, last[..., 1:3], torch.ones(())])
            assert kept.stride() == last.stride(), "sums over a tensor depend on its layout"
            flags = next(world.map(lambda x: x > 0, [picture]))
            assert torch.equal(flags, picture > 0)
            found["sum"] = kept.sum() + cut.sum() + number
        torch.save({"found": found, "calls": calls[0]}, folder / f"{count}_{world.rank}.pt")
    ranks.numbers(0)  # as in a command, none leaves before the others: torch 2.1 aborts a process that ends with a meeting under way


def trouble(ranks: Ranks, folder: Path) -> None:
    """What each process hears where one of them is in trouble: inside of a call, and between two of them."""
    said: dict[str, str] = {}

    def hears(name: str, model: Any = denoiser, on_start: Any = lambda setup, start: None) -> None:
        try:
            with ranks.together():
                run(
                    ranks,
                    "demofusion",
                    "euler",
                    1,
                    model,
                    "double",
                    on_start=on_start,
                    on_finished=lambda setup, start, latent: finished.append(setup.phase.number),
                )
            said[name] = "nothing"
        except BaseException as error:
            said[name] = f"{type(error).__name__}: {error}"
        said[name] += f" after {len(finished)}"
        finished.clear()

    finished: list[int] = []
    errors = {"interrupt": KeyboardInterrupt(), "memory": OutOfMemory("no room"), "refusal": ValueError("such a thing"), "bug": KeyError("key")}
    for name, error in errors.items():

        def model(x: torch.Tensor, sigma: torch.Tensor, error: BaseException = error, **extra: Any) -> torch.Tensor:
            if ranks.rank == 1 and finished:
                raise error
            return denoiser(x, sigma)

        def on_start(setup: Any, start: Any, error: BaseException = error) -> None:
            if ranks.rank == 2 and setup.phase.number == 2:
                raise error

        hears(f"{name} in a call", model)
        hears(f"{name} between calls", on_start=on_start)

    def signalled(x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
        if ranks.rank == 0 and finished:
            os.kill(os.getpid(), signal.SIGINT)
        return denoiser(x, sigma)

    hears("signal", signalled)
    with ranks.together():
        for batch in (4, 2, 1):  # all of them halve the batch, whichever of them lacked the memory
            calls = [batch]

            def limited(x: torch.Tensor, sigma: torch.Tensor, batch: int = batch, **extra: Any) -> torch.Tensor:
                if ranks.rank == 2 and batch > 1:
                    raise OutOfMemory("no room")
                return denoiser(x, sigma)

            try:
                halved = run(ranks, "demofusion", "euler", batch, limited)
                break
            except OutOfMemory:
                continue
        said["halved"] = str(torch.equal(halved, run(ranks, "demofusion", "euler", 1)) and calls == [1])
    try:
        with ranks.together():
            ranks.check_alike(LATENT)
            ranks.check_alike(LATENT + (1e-6 if ranks.rank == 1 else 0))
    except Exception as error:
        said["apart"] = str(error)
    try:
        with ranks.together():
            list(ranks.map(lambda k: LATENT, range(5 if ranks.rank else 4)))
    except Exception as error:
        said["another count"] = str(error)
    said["numbers"] = str(ranks.numbers(ranks.rank**2 - 1))

    def dies(x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
        if ranks.rank == 1 and finished:
            torch.save(said, folder / f"{ranks.rank}.pt")
            os.kill(os.getpid(), signal.SIGKILL)
        return denoiser(x, sigma)

    hears("death", dies)
    torch.save(said, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(place_of(os.environ)) as every:
        {"alike": alike, "trouble": trouble}[sys.argv[1]](every, Path(sys.argv[2]))
