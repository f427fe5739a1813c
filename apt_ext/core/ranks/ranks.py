"""The calls of a network dealt out to several processes, one for each GPU, such that each of them goes on with the same results.

Every process runs the whole job and draws the same noise from the same seeds; only a network's calls are divided. What goes into one call is decided
before they are dealt out, and results are handed to all and used in their order; nothing is summed on the way. So the result is, bit for bit, that of
one process on the same kind of device.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apt_ext.core.ranks.status import DEVICES, DTYPES, LENGTH, RankError, State, Status, caused_by, made_from

__all__ = ["ALONE", "Ranks"]

T = TypeVar("T")

SHORTEST_NAP, LONGEST_NAP = 5e-5, 2e-3  # seconds between two looks at whether the others have come


class Ranks:
    """The processes of a job, as one of them sees them. With one process everything is as if it were not there.

    `ranks.map` is what `ViewCalls`, `map_tiles` and `run_in_tiles` take as their `deal`. All of it runs inside `with ranks.together():`, where an
    interrupt, a failure and a lack of memory of one process reach all of them, at their next meeting.

    Attributes:
        rank: of this process, from 0; rank 0 writes and talks. `count`: how many they are.
        held: whether signals have to wait, because this process is meeting the others; see `launched`.
        stopped: whether a signal came meanwhile.
    """

    def __init__(self, rank: int = 0, count: int = 1, control: Any = None, data: Any = None):
        self.rank, self.count = rank, count
        self.held = self.stopped = False
        self._control, self._data = control, data  # groups of torch.distributed, for statuses and for tensors; None is the default one
        self._known: BaseException | None = None  # what all of them are about to raise

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def map(self, function: Callable[[T], Tensor], items: Sequence[T], /) -> Iterator[Tensor]:
        """What `map` returns, each result computed by one process and handed to all: item k by rank k modulo their number, in rounds.

        Args:
            function: must depend on its item and on what all processes hold alike; what it leaves behind besides its result stays where it ran.
            items: the same for all processes, which have to call this together. A single item is computed by rank 0.

        Raises:
            KeyboardInterrupt, OutOfMemory, ValueError, RankError: on all of them, where one is interrupted, lacks memory, refuses or
                fails in any other way; the process that met it raises what it met. After an out-of-memory error all may go on together.
        """
        return map(function, items) if self.count == 1 else self._rounds(function, items)

    def _rounds(self, function: Callable[[T], Tensor], items: Sequence[T]) -> Iterator[Tensor]:
        for start in range(0, len(items), self.count):
            own: Tensor | None = None
            try:
                if start + self.rank < len(items):
                    own = function(items[start + self.rank]).detach()
            except BaseException as error:
                self._leave(error)
            said = self._meet(self._bringing(f"map {len(items)} {start}", own))
            yield from self._gather(said[: len(items) - start], own)

    @staticmethod
    def _bringing(what: str, own: Tensor | None) -> Status:
        number = zlib.crc32(what.encode())
        if own is None:
            return Status(what=number)
        device = DEVICES.index(own.device.type)
        return Status(what=number, dtype=DTYPES.index(own.dtype), device=device, shape=tuple(own.shape), order=_order(own))

    def numbers(self, number: int) -> list[int]:
        """Every process's number, by rank. Also a meeting for its own sake: nobody goes on before all are there."""
        if self.count == 1:
            return [number]
        return [status.number for status in self._meet(Status(what=1, number=number))]

    def check_alike(self, x: Tensor) -> None:
        """Make sure that all processes hold the same tensor, bit for bit.

        Raises:
            RankError: on all of them, where they do not: devices of different kinds, say.
        """
        if self.count == 1:
            return
        digest = 0
        for part in torch.split(x.detach().contiguous().flatten().view(torch.uint8), 2**20):
            digest = (31 * digest + int((part.to(torch.int64) * torch.arange(1, len(part) + 1, device=part.device)).sum())) % 2**62
        if len(set(self.numbers(digest))) > 1:
            raise RankError(f"the {self.count} processes no longer hold the same picture; give all of them the same kind of device and the same versions")

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do together. Whatever one of them raises inside, all raise; none leaves before all have come to the end."""
        if self.count == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            self._leave(error)
        self._meet(Status(what=2))

    def _leave(self, error: BaseException) -> None:
        """Tell the others why this process goes no further; they hear it at their next meeting, which this one takes part in. Raises `error`, or what
        another one met that is worse."""
        if isinstance(error, RankError) or error is self._known:
            raise error
        state, text = caused_by(error)
        self._meet(Status(state=state, text=text), error)

    def _meet(self, own: Status, error: BaseException | None = None) -> list[Status]:
        """Exchange statuses; raise on all what any of them says. `error`: what this process met, where `own` tells of it."""
        if self.stopped and own.state == State.WELL:
            own = Status(State.STOPPED, text="stopped")
        said = self._exchange(own)
        worst = max(said, key=lambda status: status.state)
        if worst.state != State.WELL:
            self.stopped = False
            self._known = error if error is not None and own.state == worst.state else made_from(worst, said.index(worst), self.count)
            raise self._known
        if len({status.what for status in said}) > 1:
            self._known = RankError(f"the {self.count} processes no longer do the same; give all of them the same command, files, devices and versions")
            raise self._known
        return said

    def _exchange(self, own: Status) -> list[Status]:
        """Every process's status, by rank.

        Raises:
            RankError: where one of them is gone.
        """
        found = [torch.empty(LENGTH, dtype=torch.uint8) for _ in range(self.count)]
        self.held = True
        try:
            self._wait(dist.all_gather(found, own.packed(), group=self._control, async_op=True))
        except RuntimeError as error:
            raise self._lost() from error
        finally:
            self.held = False
        return [Status.unpacked(data) for data in found]

    @staticmethod
    def _wait(work: Any) -> None:
        """Until the others have come. In small naps, so that a second Ctrl-C ends the wait."""
        nap = SHORTEST_NAP
        while not work.is_completed():
            time.sleep(nap)
            nap = min(LONGEST_NAP, nap * 1.5)
        work.wait()

    def _gather(self, said: Sequence[Status], own: Tensor | None) -> list[Tensor]:
        """The tensors that these processes bring, in their order, on this one's device."""
        device = torch.device(DEVICES[said[0].device]) if own is None else own.device
        kinds = [DTYPES[status.dtype] for status in said]
        lengths = [torch.Size(status.shape).numel() * kind.itemsize for status, kind in zip(said, kinds, strict=True)]
        wire = device if device.type == "cuda" else torch.device("cpu")
        self.held = True
        try:
            send = torch.empty(max(lengths), dtype=torch.uint8, device=wire)
            if own is not None:
                send[: lengths[self.rank]] = own.permute(_order(own)).contiguous().flatten().view(torch.uint8).to(wire)
            found = [torch.empty_like(send) for _ in range(self.count)]
            work = dist.all_gather(found, send, group=self._data, async_op=True)
            if wire.type == "cuda":
                work.wait()
            else:
                self._wait(work)
        except RuntimeError as error:
            # The others are waiting for data by now, not for a status: this process can only end, which they notice.
            raise self._lost() from error
        finally:
            self.held = False
        received = zip(found, lengths, kinds, said, strict=False)
        return [_laid_out(data[:length].view(kind), status).to(device) for data, length, kind, status in received]

    def _lost(self) -> RankError:
        return RankError(f"one of the {self.count} processes has ended before the job was done")

    def farewell(self, seconds: float = 5.0) -> None:
        """The last meeting, once rank 0 has said what there is to say: a launcher ends all processes as soon as one has failed."""
        if self.count == 1:
            return
        until = time.monotonic() + seconds
        try:
            work = dist.all_gather([torch.empty(LENGTH, dtype=torch.uint8) for _ in range(self.count)], Status().packed(), group=self._control, async_op=True)
            while not work.is_completed() and time.monotonic() < until:
                time.sleep(LONGEST_NAP)
        except (RuntimeError, KeyboardInterrupt):
            pass


def _order(x: Tensor) -> tuple[int, ...]:
    """The dimensions of a tensor from the outermost in memory to the innermost: (0, 2, 3, 1) for channels last."""
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda dim: -strides[dim]))


def _laid_out(data: Tensor, status: Status) -> Tensor:
    """The tensor that a status announced, laid out in memory as it was."""
    return data.view([status.shape[dim] for dim in status.order]).permute([status.order.index(dim) for dim in range(len(status.order))])


ALONE = Ranks()
"""One process, which has everything for itself."""
