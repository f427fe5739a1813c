"""The training loop: two optimisers, a schedule by steps or by the clock, a moving average of the weights, and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apt_ext.demo.blocks import Module, channels_last
from apt_ext.demo.muon import Muon, is_hidden

__all__ = ["PARTS", "Plan", "autocast", "compact", "expand", "fit", "has_bfloat16", "plateau", "save_whole"]

PARTS = 2  # of a batch, computed side by side on a CPU: two threads with half a batch each outrun one batch on two threads
CORES = torch.get_num_threads()  # as many as there are, or as OMP_NUM_THREADS says
WARM_UP, DESCENT = 100, 0.4  # steps, and share of the run
CHECKED = 10  # steps after which a gradient has to reach every weight; before, layers that begin at zero hold some back
LOWEST = 0.02  # share of the peak rate at the end
MATRIX_RATE, OTHER_RATE = 0.02, 1.5e-3  # peaks, Muon's and AdamW's


@dataclass(frozen=True)
class Plan:
    """How long and how fast: `minutes` of computing end a run earlier than its `steps` do (0: they do not); `rate` is a share of the usual."""

    seed: int
    steps: int
    minutes: float = 0.0
    rate: float = 1.0
    follow: float = 0.996
    every: int = 200


def plateau(step: int, done: float) -> float:
    """Share of the peak rate: a short warm-up, the peak, and a straight way down over the last 40 % of the run.

    As good as a cosine (Hagele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024), and the
    run's length need not be decided before the descent. `done` is the share of it that lies behind.
    """
    return min((step + 1) / WARM_UP, 1.0, LOWEST + (1 - done) / DESCENT)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; a processor without it only imitates it, ten times slower than float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def save_whole(state: dict[str, Any], path: Path) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.replace(path)


def compact(state: Any) -> Any:
    """A checkpoint at about half its size: every large float32 tensor in it in half precision, beside the power of two it was scaled by.

    The scale keeps momenta, which are small, within half precision's range. Small tensors stay as they are: all of AdamW's are.
    """
    if isinstance(state, Tensor) and state.dtype == torch.float32 and state.numel() >= 4096:
        peak = float(state.abs().max())
        scale = 2.0 ** math.floor(math.log2(peak)) if 0 < peak < math.inf else 1.0
        return {"half": (state / scale).half(), "scale": scale}
    if isinstance(state, dict):
        return {key: compact(value) for key, value in state.items()}
    return [compact(value) for value in state] if isinstance(state, (list, tuple)) else state


def expand(state: Any) -> Any:
    """What `compact` was given, to half precision."""
    if isinstance(state, dict):
        if set(state) == {"half", "scale"}:
            return state["half"].float() * state["scale"]
        return {key: expand(value) for key, value in state.items()}
    return [expand(value) for value in state] if isinstance(state, list) else state


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


def _all_learn(model: nn.Module) -> None:
    left = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    if left:
        raise RuntimeError(f"no gradient reaches {len(left)} of the weights, {left[0]} for one; train without --compile, if it is there")


def _threads(device: torch.device) -> ThreadPoolExecutor:
    """One thread for each part of a batch, with its share of the processor's cores."""
    if device.type != "cpu":
        return ThreadPoolExecutor(1)
    share = max(1, CORES // PARTS)
    torch.set_num_threads(share)
    return ThreadPoolExecutor(min(PARTS, CORES), initializer=torch.set_num_threads, initargs=(share,))


def fit(model: Module, loss_of: Callable[[int, int], Tensor], plan: Plan, checkpoint: Path, device: torch.device, export: Callable[[Module], None]) -> Module:
    """Follows the gradient of `loss_of(step, part) -> scalar`, averaged over the parts, and returns the model's moving average.

    Kernels between hidden layers are Muon's, everything else is AdamW's.

    Args:
        checkpoint: a file that is written every `plan.every` steps and at the end; where it exists, the run goes on from it, and its
            length may be another than before. A compact one will do.
        export: is given the average whenever a checkpoint has been written.

    Raises:
        ValueError: where the checkpoint is of a run with another seed.
        RuntimeError: where no gradient at all reaches some of the weights, as of a network that was compiled wrongly.
    """
    channels_last(model, device)
    average = copy.deepcopy(model).requires_grad_(False)
    parameters = list(model.parameters())
    threads = _threads(device)
    peaks = (plan.rate * MATRIX_RATE, plan.rate * OTHER_RATE)
    optimisers = (
        Muon([p for p in parameters if is_hidden(p)], peaks[0], run=threads),
        torch.optim.AdamW([p for p in parameters if not is_hidden(p)], peaks[1], betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    )
    step, before, shown = 0, 0.0, 0.0
    if checkpoint.exists():
        state = expand(torch.load(checkpoint, map_location=device, weights_only=True))
        if state["seed"] != plan.seed:
            raise ValueError(f"{checkpoint} is of a run with seed {state['seed']}; use another --out for seed {plan.seed}")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, before = state["step"], state["seconds"]
    started, first = time.monotonic() - before, step

    def save() -> None:
        parts = {"model": model.state_dict(), "average": average.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
        save_whole(parts | {"step": step, "seconds": time.monotonic() - started, "seed": plan.seed}, checkpoint)
        export(average)

    def done() -> float:
        by_clock = (time.monotonic() - started) / (60 * plan.minutes) if plan.minutes else 0.0
        return max(step / plan.steps, by_clock)

    bar = tqdm(initial=step, total=plan.steps, desc=checkpoint.stem, mininterval=10)
    while (behind := done()) < 1:

        def part(number: int, step: int = step) -> tuple[float, tuple[Tensor, ...]]:
            loss = loss_of(step, number)
            return loss.item(), torch.autograd.grad(loss, parameters)

        losses, gradients = zip(*threads.map(part, range(PARTS)), strict=True)
        for parameter, *shares in zip(parameters, *gradients, strict=True):
            parameter.grad = sum(shares[1:], shares[0]) / PARTS  # keeps the layout of a kernel in memory, as a stack of them would not
        if step == first + CHECKED:
            _all_learn(model)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * plateau(step, behind)
            optimiser.step()
        _follow(average, model, min(plan.follow, (1 + step) / (10 + step)))
        loss = sum(losses) / PARTS
        shown = loss if not shown else 0.98 * shown + 0.02 * loss
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
        if step % plan.every == 0:
            save()
    bar.close()
    if step % plan.every:
        save()
    threads.shutdown()
    return average
