"""Probe of this machine's devices: each multiplies matrices, and all add up a number as trainings do (NCCL, or gloo).

python -m remint.distributed.probe    one rank of it, started by torchrun
"""

from __future__ import annotations

import sys

import torch

from remint.distributed.launch import run_ranks
from remint.distributed.world import World, join
from remint.errors import StepError
from remint.runtime.events import run_step

SIZE = 256  # of the matrices
BEYOND = 1e-2  # largest error of their product, relative to the largest entry: a GPU may round to tf32


def probe(count: int) -> None:
    """Try ``count`` ranks, as a training with that many devices starts them. Raises StepError, or ResourceError."""
    run_ranks(["-m", __name__, "probe"], count, threads=1)


def check(world: World) -> None:
    """Run the probe of one rank. Every rank calls it."""
    generator = torch.Generator().manual_seed(world.rank)
    left, right = (torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = left @ right
    found = (left.float().to(world.device) @ right.float().to(world.device)).double().cpu()
    if (found - exact).abs().max() > BEYOND * exact.abs().max():
        raise StepError(f"{world.device} multiplies wrongly")
    number = torch.tensor([float(world.rank)], device=world.device)
    torch.distributed.all_reduce(number)
    if number.item() != sum(range(world.size)):
        raise StepError(f"the sum over {world.size} processes is {number.item():g}")


def _main(_key: str) -> None:
    with join() as world:
        check(world)


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:] or ["probe"]
    run_step(_main)
