"""World of ranks: the place of this process among N, and the collective operations.

A single process has no process group, and every method is then the identity. With N processes, sums are taken in the
order of the ranks: the same run gives the same bits in whatever order the backend schedules its messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from remint.models.contract import Phase

Shared = TypeVar("Shared")
COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # longest wait for a rank that does not answer


def launched() -> bool:
    """Return whether torchrun started this process as one of N."""
    return dist.is_available() and dist.is_torchelastic_launched()


@dataclass(frozen=True)
class World:
    """This process (``rank``) among ``size``, and its device."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # for values on the CPU, also if gradients go between GPUs

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and emits events for all."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return the rows of the global batch that belong to this rank."""
        return rows_of(self.rank, self.size, batch_size)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of every rank, on the CPU, shape (size, *values.shape). All ranks must call it."""
        mine = values.detach().cpu()
        if self.control is None:
            return mine.unsqueeze(0)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.control)
        return torch.stack(every)

    def mean(self, values: Tensor, batch_size: int) -> Tensor:
        """Return the mean over the global batch of values that are, on each rank, means over its rows. All ranks must call it."""
        return _mean_over_rows(self.gather(values), batch_size)

    def own(self, gathered: Tensor, batch_size: int) -> Tensor:
        """Return this rank's part of what ``gather`` returned; what ``mean`` returns, if that was in a world of another size."""
        return gathered[self.rank] if len(gathered) == self.size else _mean_over_rows(gathered, batch_size)

    def blocks(self, total: int, size: int, make: Callable[[int], Tensor]) -> Tensor:
        """Return ``total`` rows, made in blocks of ``size`` by ``make(number)``. Rank r makes blocks r, r + world size, ..

        All ranks must call it, and each gets all rows, in order, on the CPU. A row does not depend on the number of ranks.
        """
        count = math.ceil(total / size)
        if self.control is None:
            return torch.cat([make(number).detach().cpu() for number in range(count)])
        turns = math.ceil(count / self.size)
        # A rank without a block in the last turn makes the last block again: every rank must send one.
        mine = [make(min(turn * self.size + self.rank, count - 1)).detach().cpu() for turn in range(turns)]
        full = [torch.cat([block, block.new_zeros(size - len(block), *block.shape[1:])]) for block in mine]
        return self.gather(torch.stack(full)).transpose(0, 1).flatten(0, 2)[:total]

    def any(self, mine: bool) -> bool:
        """Return whether ``mine`` is true on any rank. All ranks must call it, and all get the same answer."""
        return mine if self.control is None else bool(self.gather(torch.tensor([mine])).any())

    def broadcast(self, number: int) -> int:
        """Return rank 0's number on every rank."""
        return number if self.control is None else int(self.gather(torch.tensor([number]))[0])

    def share(self, make: Callable[[], Shared]) -> Shared:
        """Return what ``make`` returns on rank 0, on every rank. Other ranks may lie on machines without rank 0's files."""
        if self.control is None:
            return make()
        made: list[Any] = [make() if self.leads else None]
        dist.broadcast_object_list(made, src=0, group=self.control)
        shared: Shared = made[0]
        return shared

    def data_parallel(self, phase: Phase, batch_size: int) -> nn.Module:
        """Return the phase, wrapped so that the backward pass averages gradients over the rows of the global batch."""
        if self.size == 1:
            return phase
        phase.requires_grad_(True)  # it registers hooks only for parameters that require a gradient now
        wrapped = DistributedDataParallel(phase, device_ids=[self.device] if self.device.type == "cuda" else None)
        rows = self.rows(batch_size)
        weight = (rows.stop - rows.start) * self.size / batch_size  # 1.0 where all ranks have equally many
        wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket.buffer(), weight))
        phase.requires_grad_(False)
        return wrapped


def rows_of(rank: int, size: int, batch_size: int) -> slice:
    """Return the rows of the global batch of one rank of ``size``. Where they cannot be equally many, the first have one more."""
    share, more = divmod(batch_size, size)
    start = rank * share + min(rank, more)
    return slice(start, start + share + (rank < more))


def _mean_over_rows(values_WX: Tensor, batch_size: int) -> Tensor:
    """Return the mean of each rank's means, weighted by its rows."""
    size = len(values_WX)
    if batch_size % size == 0:
        return values_WX.mean(0)
    rows = [rows_of(rank, size, batch_size) for rank in range(size)]
    count_W = torch.tensor([each.stop - each.start for each in rows], dtype=values_WX.dtype)
    mean_X: Tensor = torch.tensordot(count_W, values_WX, 1) / batch_size
    return mean_X


def _mean_in_rank_order(mine: Tensor, weight: float) -> Any:
    """Return a future: the weighted mean of a bucket of gradients over the ranks, summed in the order of the ranks.

    An all-reduce sums in an order that depends on an element's place in its bucket, and buckets are rebuilt
    after the first step of every process: with 3 or more ranks a resumed run would differ in the last bit.
    """
    size = dist.get_world_size()
    every = torch.empty(size * mine.numel(), dtype=mine.dtype, device=mine.device)
    if weight != 1.0:
        mine.mul_(weight)

    def mean(_: torch.futures.Future[Any]) -> Tensor:
        total = mine.zero_()
        for part in every.view(size, -1):
            total += part
        return total.div_(size)

    return dist.all_gather_single(every, mine, async_op=True).get_future().then(mean)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the steps before. On the CPU the tensor itself."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


@contextmanager
def join() -> Iterator[World]:
    """Yield the world that torchrun made, or a world of one process. Its process group exists while the block runs."""
    cuda = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"]) if launched() else 0
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not launched():
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        yield World(dist.get_rank(), dist.get_world_size(), device, control)
    finally:
        dist.destroy_process_group()
