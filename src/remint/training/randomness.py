"""Randomness of a training: pure functions of (seed, purpose, position). A checkpoint needs no generator state.

Noise of a loss is drawn for the global batch, and each process takes its rows: 1 and N processes see the same numbers.
Randomness inside a layer (dropout) comes from torch's own generator, seeded before every step by (seed, step, rank): it
resumes exactly, but N processes draw other numbers than one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from remint.models.contract import standard_normal

# First number after the seed: the purpose of the random numbers.
INITIAL, BATCH, SCORE, LAYERS, COLLAPSE_CHECK = range(5)


def batch_noise(rows: slice, batch_size: int, size: int, *, seed: int, step: int, phase: int, device: torch.device) -> Tensor:
    """Return standard normal noise of these rows of the global batch, shape (rows, size), for one phase of one step."""
    return standard_normal((batch_size, size), seed, BATCH, step, phase)[rows].to(device)


def seed_layers(*where: int) -> None:
    """Seed torch's own generators, of the CPU and of every GPU in use, with ``where``."""
    word = int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(word)  # torch.manual_seed takes 0.7 ms: it records a stack trace for GPUs not yet in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)
