"""What every process says at each meeting: how it fares, what it brings, and, where it fails, why."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LENGTH", "OutOfMemory", "RankError", "State", "Status", "caused_by", "made_from"]

OutOfMemory: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # torch before 2.5 knows the latter alone

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
DEVICES = ("cpu", "cuda", "xpu", "mps")
MOST_DIMS = 6
_HEAD = struct.Struct(f"<{6 + 2 * MOST_DIMS}q")
LENGTH = 512
"""Bytes of a status, whatever it says, so that all can be gathered at once."""


class RankError(RuntimeError):
    """Another process of the job failed or is gone; says which and why."""


class State(IntEnum):
    """How a process fares; where several are in trouble, the highest decides for all."""

    WELL = 0
    MEMORY = 1
    REFUSED = 2
    FAILED = 3
    STOPPED = 4


class Status(NamedTuple):
    """A process's word to the others.

    Attributes:
        state: how it fares. `text`: why, where it does not fare well.
        what: a number for what it is doing, the same for all of them as long as they keep together.
        number: that it wants the others to know.
        dtype, device, shape: of the tensor that it brings; an empty shape for none. `order`: of its dimensions in memory, which sums over it depend on.
    """

    state: State = State.WELL
    what: int = 0
    number: int = 0
    dtype: int = 0
    device: int = 0
    shape: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    text: str = ""

    def packed(self) -> Tensor:
        """(LENGTH,) uint8."""
        dims, rest = len(self.shape), [0] * (MOST_DIMS - len(self.shape))
        data = _HEAD.pack(self.state, self.what, self.number, self.dtype, self.device, dims, *self.shape, *rest, *self.order, *rest) + self.text.encode()
        return torch.frombuffer(bytearray(data[:LENGTH].ljust(LENGTH, b"\0")), dtype=torch.uint8)

    @classmethod
    def unpacked(cls, data: Tensor) -> Status:
        """The inverse."""
        raw = bytes(data.tolist())
        state, what, number, dtype, device, dims, *sides = _HEAD.unpack(raw[: _HEAD.size])
        text = raw[_HEAD.size :].rstrip(b"\0").decode(errors="ignore")
        return cls(State(state), what, number, dtype, device, tuple(sides[:dims]), tuple(sides[MOST_DIMS : MOST_DIMS + dims]), text)


def caused_by(error: BaseException) -> tuple[State, str]:
    """How a process fares that met an exception, and why in a few words, with the place in the code where nobody foresaw it."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return State.STOPPED, "stopped"
    if isinstance(error, (MemoryError, OutOfMemory)) or "out of memory" in said.lower() or "can't allocate memory" in said.lower():
        return State.MEMORY, said
    if isinstance(error, (ValueError, OSError)):
        return State.REFUSED, said
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f", {os.path.basename(place.tb_frame.f_code.co_filename)} line {place.tb_lineno}" if place else ""
    return State.FAILED, f"{type(error).__name__}: {said[:300]}{where}"


def made_from(status: Status, rank: int, ranks: int) -> BaseException:
    """The exception that the others raise for what one of them met."""
    who = f"process {rank + 1} of {ranks}"
    if status.state == State.STOPPED:
        return KeyboardInterrupt(f"{who} was stopped")
    if status.state == State.MEMORY:
        return OutOfMemory(f"{who} is out of memory: {status.text}")
    if status.state == State.REFUSED:
        return ValueError(f"{who}: {status.text}")
    return RankError(f"{who} failed ({status.text})")
