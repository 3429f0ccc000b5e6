"""Randomness of a training: pure functions of (seed, purpose, position). A checkpoint needs no generator state.

Noise of a loss is a function of the row of the global batch, and each process makes its own rows only: 1 and N processes see
the same numbers, and the cost for each does not grow with N. It comes from a counter-based generator, Philox (Salmon et al.,
Parallel random numbers: as easy as 1, 2, 3, 2011), which starts at any position at once.
What dropout drops is a function of a value's place in the global batch too (models/layers.py). A layer of a plugin that takes
numbers of torch's own generator resumes exactly, since that is seeded before every step by (seed, step, rank); but with it N
processes draw other numbers than one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.distributed.world import to_device

# First number after the seed: the purpose of the random numbers.
INITIAL, BATCH, SCORE, LAYERS, COLLAPSE_CHECK, DROPOUT = range(6)

WORDS = 8  # 32-bit words of one block of Philox 4x64
UNIT = np.float32(2.0**-32)  # a word times this is in 0 .. 1
TURN, MINUS_TWO = np.float32(2 * np.pi), np.float32(-2)


def batch_noise(rows: slice, size: int, *, seed: int, step: int, phase: int, device: torch.device) -> Tensor:
    """Return standard normal noise of these rows of the global batch, float32 (rows, size), for one phase of one step.

    A row is the same for any batch size. On a GPU the copy does not wait for the steps before it.
    """
    count, blocks = rows.stop - rows.start, -(-size // WORDS)
    if not size:
        return torch.empty((count, 0), device=device)
    generator, state = _generator(seed, phase)
    state["state"]["counter"][:2] = (rows.start * blocks, step)
    generator.state = state
    words: Any = generator.random_raw(count * blocks * WORDS // 2).view(np.uint32).reshape(count, 2, -1)
    # Box & Muller, A note on the generation of random normal deviates (1958): a radius and an angle make two numbers.
    unit = words.astype(np.float32)
    unit *= UNIT
    radius, angle = unit[:, 0] + UNIT / 2, unit[:, 1] * TURN  # log(0) is not finite
    np.log(radius, out=radius)
    radius *= MINUS_TWO
    np.sqrt(radius, out=radius)
    np.multiply(radius, np.cos(angle), out=unit[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=unit[:, 1])
    noise = torch.from_numpy(unit.reshape(count, -1)[:, :size])
    return to_device(noise, device)


@lru_cache
def _generator(seed: int, phase: int) -> tuple[np.random.Philox, Any]:
    """Return a generator with the key of a phase, and its state, whose counter the caller sets: to make one takes longer."""
    generator = np.random.Philox(key=np.frombuffer(_digest(seed, BATCH, phase)[:16], np.uint64))
    return generator, generator.state


def dropout_key(seed: int, step: int, phase: int, layer: int) -> int:
    """Return the key of a dropout layer in one phase of one step, an int32."""
    return int.from_bytes(_digest(seed, DROPOUT, step, phase, layer)[:4], "little", signed=True)


def _digest(*where: int) -> bytes:
    return hashlib.sha256(repr(where).encode()).digest()


def seed_layers(*where: int) -> None:
    """Seed torch's own generators, of the CPU and of every GPU in use, with ``where``."""
    word = int.from_bytes(_digest(*where)[:8], "little") >> 1
    torch.default_generator.manual_seed(word)  # torch.manual_seed takes 0.7 ms: it records a stack trace for GPUs not yet in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)
