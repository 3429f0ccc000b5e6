"""One process or N: who we are among them, and the few things that they say to one another.

One process has no process group at all; every method then is the identity. Among N, sums are taken in the
order of the ranks, so that the same run gives the same bits however the backend schedules its messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from remint.models.contract import Phase

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # longest wait for a rank that says nothing


def launched() -> bool:
    """Whether torchrun started this process as one of N."""
    return dist.is_available() and dist.is_torchelastic_launched()


@dataclass(frozen=True)
class World:
    """This process (``rank``) among ``size``, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # for words between processors, even where gradients go between GPUs

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The rows of the global batch that are ours."""
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, values: Tensor) -> Tensor:
        """The values of every rank, on the CPU, shape (size, *values.shape). All ranks must call it."""
        mine = values.detach().cpu()
        if self.control is None:
            return mine.unsqueeze(0)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.control)
        return torch.stack(every)

    def blocks(self, total: int, size: int, make: Callable[[int], Tensor]) -> Tensor:
        """``total`` rows, made in blocks of ``size`` by their number, of which rank r makes r, r + world size and so on.

        All ranks must call it, and all get all rows, in order, on the CPU: what a row is does not depend on the number of ranks.
        """
        count = math.ceil(total / size)
        if self.control is None:
            return torch.cat([make(number).detach().cpu() for number in range(count)])
        turns = math.ceil(count / self.size)
        # Where a block is wanting for the last turn, the last of all is made once more.
        mine = [make(min(turn * self.size + self.rank, count - 1)).detach().cpu() for turn in range(turns)]
        full = [torch.cat([block, block.new_zeros(size - len(block), *block.shape[1:])]) for block in mine]
        return self.gather(torch.stack(full)).transpose(0, 1).flatten(0, 2)[:total]

    def any(self, mine: bool) -> bool:
        """Whether any rank says so. All ranks must call it, and all get one answer."""
        return mine if self.control is None else bool(self.gather(torch.tensor([mine])).any())

    def broadcast(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        return number if self.control is None else int(self.gather(torch.tensor([number]))[0])

    def data_parallel(self, phase: Phase) -> nn.Module:
        """The phase, its gradients averaged over the ranks in the backward pass."""
        if self.size == 1:
            return phase
        phase.requires_grad_(True)  # it registers hooks for those that want a gradient now
        wrapped = DistributedDataParallel(phase, device_ids=[self.device] if self.device.type == "cuda" else None)
        wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket.buffer()))
        phase.requires_grad_(False)
        return wrapped


def _mean_in_rank_order(mine: Tensor) -> Any:
    """Future of the mean over the ranks of a bucket of gradients, summed in the order of the ranks.

    An all-reduce sums in an order that depends on an element's place in its bucket, and buckets are rebuilt
    after the first step of every process: with 3 and more ranks a resumed run would differ in the last bit.
    """
    size = dist.get_world_size()
    every = torch.empty(size * mine.numel(), dtype=mine.dtype, device=mine.device)

    def mean(_: torch.futures.Future[Any]) -> Tensor:
        total = mine.zero_()
        for part in every.view(size, -1):
            total += part
        return total.div_(size)

    return dist.all_gather_single(every, mine, async_op=True).get_future().then(mean)


SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun made, or the world of one. Its process group lives as long as the block."""
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
