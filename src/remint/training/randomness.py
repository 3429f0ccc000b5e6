"""All randomness of a training: pure functions of (seed, what for, where), so that nothing has to be resumed.

Noise that a loss needs is drawn for the global batch and each process takes its rows: 1 and N processes
see the same numbers. What a layer draws by itself (dropout) comes from torch's own generator, seeded anew
before every step by (seed, step, rank): it resumes exactly, but N processes draw other numbers than one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from remint.models.contract import standard_normal

# First number after the seed: what the numbers are for.
INITIAL, BATCH, SCORE, LAYERS, COLLAPSE_CHECK = range(5)


def batch_noise(rows: slice, batch_size: int, size: int, *, seed: int, step: int, phase: int, device: torch.device) -> Tensor:
    """Standard normal noise of the given rows of the global batch, shape (rows, size), for one phase of one step."""
    return standard_normal((batch_size, size), seed, BATCH, step, phase)[rows].to(device)


def seed_layers(*where: int) -> None:
    """Seeds torch's own generators, of the CPU and of every GPU in use, by ``where``."""
    word = int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(word)  # torch.manual_seed costs 0.7 ms: it notes a stack trace for GPUs not yet in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)
