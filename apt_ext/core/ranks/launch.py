"""How the processes of a job find each other: by the environment that torchrun and accelerate's launcher set."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from apt_ext.core.ranks.ranks import ALONE, Ranks

__all__ = ["Place", "joined", "own_device", "place_of"]

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
REMEDY = "start it by: torchrun --nproc-per-node=N -m apt_ext ..."
PATIENCE = timedelta(days=2)
"""How long a process waits for another one, which may have a whole picture to do. One that has ended is noticed at once."""


class Place(NamedTuple):
    """Which of the processes this is: of all, and of those on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1


def place_of(environment: Mapping[str, str]) -> Place:
    """This process's place by a launcher's environment variables; the only one, where there are none.

    Raises:
        ValueError: where they are incomplete or contradict each other.
    """
    given = {name: environment[name] for name in NAMES if environment.get(name)}
    if "RANK" not in given and given.get("WORLD_SIZE", "1") == "1":
        return Place()
    missing = [name for name in NAMES if name not in given]
    if missing:
        shown = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{shown} is set, but no launcher has set {', '.join(missing)}; {REMEDY}, or unset it for a single process")
    numbers = {}
    for name, value in {**given, "LOCAL_WORLD_SIZE": environment.get("LOCAL_WORLD_SIZE", given["WORLD_SIZE"])}.items():
        if name != "MASTER_ADDR":
            if not value.isdecimal():
                raise ValueError(f"{name}={value} is no whole number; {REMEDY}")
            numbers[name] = int(value)
    place = Place(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"])
    if not place.rank < place.world or not place.local < place.local_world <= place.world:
        raise ValueError(f"RANK={place.rank} LOCAL_RANK={place.local} do not fit WORLD_SIZE={place.world}; {REMEDY}")
    return place


def own_device(name: str, place: Place) -> str:
    """The name of the device that a process uses: with several of them, each takes the GPU of its number on its machine.

    Args:
        name: as asked for: "auto", "cpu", "cuda", or a device of its own such as "cuda:1".

    Raises:
        ValueError: where processes would have to share a GPU.
    """
    gpus = torch.cuda.device_count()
    if place.local_world == 1 or name == "cpu" or (name == "auto" and not gpus):
        return name
    if ":" in name:
        raise ValueError(f"device {name!r} is one device, and {place.local_world} processes are to share it; use auto, cuda or cpu")
    if name in ("auto", "cuda") and gpus:
        if place.local_world > gpus:
            raise ValueError(f"{place.local_world} processes are started and this machine has {gpus} GPUs; use --nproc-per-node={gpus}")
        return f"cuda:{place.local}"
    return name


@contextmanager
def joined(place: Place, start: timedelta = timedelta(minutes=2)) -> Iterator[Ranks]:
    """Meet the other processes, and part from them at the end.

    Inside, Ctrl-C and SIGTERM, by which launchers end processes, raise KeyboardInterrupt; while this process meets the others the signal waits, so
    that they hear of it, and a second one no longer does. Ends with `Ranks.farewell`.

    Args:
        place: from `place_of`.
        start: how long to wait for the others to start.

    Raises:
        ValueError: where the others do not come.
    """
    if place.world == 1:
        yield ALONE
        return
    if torch.cuda.device_count() > place.local:
        torch.cuda.set_device(place.local)
    try:
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", rank=place.rank, world_size=place.world, timeout=start)
        # Statuses go by way of the CPU: no GPU has to be waited for, and an ended process is noticed at once.
        ranks = Ranks(place.rank, place.world, dist.new_group(backend="gloo", timeout=PATIENCE))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"process {place.rank + 1} of {place.world} did not find the others ({reason}); {REMEDY}") from None
    kept = _signals(ranks)
    try:
        yield ranks
    finally:
        ranks.farewell()
        for number, handler in kept.items():
            signal.signal(number, handler)
        dist.destroy_process_group()


def _signals(ranks: Ranks) -> dict[int, Any]:
    """Let signals wait while the processes meet; returns the handlers that were there. Outside of the main thread nothing can be done."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def heard(number: int, frame: object) -> None:
        again, ranks.stopped = ranks.stopped, True
        if again or not ranks.held:
            raise KeyboardInterrupt

    return {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
