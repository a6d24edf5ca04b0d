"""The processes that train one network together: who they are, and how they agree.

Each of them (a rank) computes its share of every step; PyTorch's DistributedDataParallel adds the gradients up. Only the first
one knows MLflow, writes checkpoints and speaks. They are started by `launch`, or by torchrun, which names them by the variables
RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tracked_cls.errors import ProcessLost, UserError
from tracked_cls.host import refusal
from tracked_cls.presence import Presence
from tracked_cls.provenance import num_cores

if TYPE_CHECKING:
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_PLACES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}  # with what they are without torchrun
_SIGNS = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "tcpstore")  # of what another process causes


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Of one alone, every method gives back what it is given.

    It has number `rank` of `world_size`, on its `machine` (a number too) `local_rank` of `local_world_size`.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    machine: int = 0
    presence: Presence | None = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that tracks, saves and speaks."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there is another one."""
        return self.world_size > 1

    def share(self, size: int) -> slice:
        """Return this process's part of `size` items: contiguous, and no larger than another's by more than one item."""
        each, more = divmod(size, self.world_size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes; the same in all of them."""
        if not self.are_several:
            return list(values)
        import torch
        from torch import distributed

        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.total([float(flag)])[0] > 0

    def told(self, value: T) -> T:
        """Return the value of the first process."""
        if not self.are_several:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def note(self, what: str) -> None:
        """Let the others know of something that they may wait for."""
        if self.presence is not None:
            self.presence.note(what)

    def wait_for(self, what: str) -> None:
        """Wait for a note, however long it takes: preparing data may take hours, for which no step would wait.

        Raises `ProcessLost` where another process has ended, or shows no sign of life.
        """
        if self.presence is not None:
            self.presence.wait_for(what)

    def meet(self, where: str) -> None:
        """Wait until all processes are here, however long it takes."""
        self.note(f"{where}/{self.rank}")
        for other in range(self.world_size):
            self.wait_for(f"{where}/{other}")

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if not self.are_several:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def copy_buffers(self, network: nn.Module) -> None:
        """Take over the first process's buffers (the statistics of BatchNorm), which others see other images for."""
        if self.are_several:
            from torch import distributed

            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def replica(self, network: nn.Module) -> DistributedDataParallel:
        """Return a network whose backward pass adds up the gradients of all processes, divided by their number.

        PyTorch lays the gradients out anew after the first step, and three or more numbers are added in an order that depends
        on where they lie: a training that goes on would begin with the first layout, and end with other bits. It keeps the
        first one where it looks for parameters that a step does not use, which a network may have. Buffers are not sent
        before each step: no step reads another process's, and where they are read the first one's are taken (`copy_buffers`).
        """
        from torch.nn.parallel import DistributedDataParallel

        replica = DistributedDataParallel(network, gradient_as_bucket_view=True, find_unused_parameters=True)
        replica.broadcast_buffers = False  # the argument has another name in newer releases of PyTorch
        return replica

    def threads_of(self, total: int) -> int:
        """Return the CPU threads of this process, out of all that the training has on this machine."""
        return max(1, total // self.local_world_size)

    def device_of(self, name: str) -> str:
        """Return the device of this process: a GPU of its own where devices are left to us, or are GPUs."""
        if not self.are_several:
            return name
        import torch

        found = torch.cuda.device_count()
        if name == "cpu" or (name == "auto" and found == 0):
            return "cpu"
        if name not in ("auto", "cuda"):
            raise UserError(f"device={name} is one device, and nproc={self.local_world_size} processes want one each; "
                            "give device=auto, cuda or cpu")  # fmt: skip
        if found < self.local_world_size:
            raise UserError(f"nproc={self.local_world_size}: this machine has {found} GPUs, and each process takes one; "
                            f"give nproc={max(found, 1)}, or device=cpu")  # fmt: skip
        return f"cuda:{self.local_rank}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise `ProcessLost` inside the block where another process has ended, or does not answer."""
        try:
            yield
        except RuntimeError as error:
            if not self.are_several or not any(sign in str(error).lower() for sign in _SIGNS):
                raise
            why = self.presence.trouble() if self.presence is not None else None
            raise ProcessLost(
                f"{why or self._unanswered(error)}; the same command continues from the newest checkpoint"
            ) from error

    def _unanswered(self, error: RuntimeError) -> str:
        return (
            f"another of the {self.world_size} processes that train together has ended or does not answer "
            f"({' '.join(str(error).split())[:200]})"
        )


ALONE = Ranks()
RESTARTS = "TRACKED_CLS_RESTARTS"  # how often `launch`, or a scheduler, has started all processes again
STORE = "TRACKED_CLS_STORE"  # the file where those of `launch` meet
_ENDED = "the first process has ended"
_FAREWELL_SECONDS = 5.0


def rank() -> int | None:
    """Return the number of this process among those that a launcher started; None where there is no launcher."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["RANK"]) if all(name in os.environ for name in names) else None


def require_alone() -> None:
    """Raise `UserError` where a launcher started this process as the first of several; the others leave it to say so."""
    if rank():
        sys.exit(2)
    if rank() is not None and os.environ["WORLD_SIZE"] != "1":
        raise UserError(f"torchrun started this {os.environ['WORLD_SIZE']} times, and each would do all of "
                        "the work: only train is for several; start this command once, without torchrun")  # fmt: skip


def is_restart() -> bool:
    """Whether a launcher started this process again after a kill: the training goes on, whatever its user wants of old ones."""
    return os.environ.get(RESTARTS, "0") != "0" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def cores_here() -> int:
    """Return the cores of this process: its part, where several train together on this machine."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined(timeout_seconds: float) -> Iterator[Ranks]:
    """Meet the other processes of this training, and leave them at the end; without a launcher there are none.

    Raises `UserError` where they do not come within `timeout_seconds`, which is also how long a step waits for one.
    """
    if rank() is None or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    ranks = _meet(timeout_seconds)
    try:
        yield ranks
        with ranks.watched():
            _end_together(ranks)
    except BaseException as error:
        _end_in_trouble(ranks, error)
        raise
    finally:
        assert ranks.presence is not None
        ranks.presence.end()
        leave()


def _end_together(ranks: Ranks) -> None:
    """Stay until the first process has tested and registered: it may be lost, and then all have to go on."""
    assert ranks.presence is not None
    if not ranks.is_first:
        ranks.wait_for(_ENDED)
        if (why := ranks.presence.trouble()) is not None:
            raise ProcessLost(why)
        ranks.note(f"gone/{ranks.rank}")
        return
    ranks.note(_ENDED)
    with suppress(ProcessLost, RuntimeError):  # all is done: who is lost now does not matter
        for other in range(1, ranks.world_size):
            ranks.presence.wait_for(f"gone/{other}", at_most=_FAREWELL_SECONDS)  # who keeps the store leaves last


def _end_in_trouble(ranks: Ranks, error: BaseException) -> None:
    """Say why this process leaves; where the first one is to say so, stay until it has: whoever leaves has all stopped."""
    assert ranks.presence is not None
    if isinstance(error, ProcessLost) and not ranks.is_first:  # it has no reason of its own
        with suppress(ProcessLost, RuntimeError):
            ranks.wait_for(_ENDED)
        return
    ranks.presence.note_trouble(" ".join((refusal(error) or str(error) or type(error).__name__).split()))
    if ranks.is_first:
        with suppress(RuntimeError):
            ranks.note(_ENDED)


def leave() -> None:
    """Part from the other processes, if they are still there."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _meet(timeout_seconds: float) -> Ranks:
    import torch
    from torch import distributed

    number, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = timedelta(seconds=timeout_seconds)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        store = _store(number, world_size, patience)
        shared = distributed.PrefixStore("group", store)  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=shared, rank=number, world_size=world_size, timeout=patience)
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"process {number} of {world_size} waited {timeout_seconds:g} s for the others at {address}, and not all came "
            f"({' '.join(str(error).split())[:160]}); are they started, and does a firewall let them through?"
        ) from None
    place, places, machine = (int(os.environ.get(name, default)) for name, default in _PLACES.items())
    presence = Presence(distributed.PrefixStore("presence", store), number, world_size, timeout_seconds)  # type: ignore[attr-defined]
    return Ranks(number, world_size, place, places, machine, presence)


def _store(number: int, world_size: int, patience: timedelta) -> Any:
    """Return where the processes tell each other their addresses: a file of `launch`, else torchrun's server."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if STORE not in os.environ:
        store, _, _ = next(rendezvous("env://", number, world_size, timeout=patience))
        return store
    kept = distributed.FileStore(os.environ[STORE], world_size)  # type: ignore[attr-defined]
    kept.set_timeout(patience)
    return kept
