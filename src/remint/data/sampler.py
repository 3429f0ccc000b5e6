"""Batch sampler: a pure function of (seed, step), so a resumed run needs no sampler state.

Position p of the endless stream of examples is in epoch p // count, at index p % count of that epoch's
permutation. Step s takes the positions s * batch_size .. (s + 1) * batch_size - 1: every batch is full, and
each epoch holds every example once. (Idea: EDM2's InfiniteSampler, Karras et al., 2024.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


@lru_cache(maxsize=4)  # a batch may need two epochs; the others are for a second stream
def _permutation(count: int, seed: int, epoch: int) -> Indices:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def spaced_indices(count: int, most: int) -> Indices:
    """Return at most ``most`` evenly spaced indices below ``count``, ascending, int64."""
    return np.unique(np.linspace(0, count - 1, num=min(count, most)).astype(np.int64))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> Indices:
    """Return the indices of the global batch in the training split, int64, shape (batch_size,).

    ``count``: examples in the split; ``step``: steps already done. If an epoch cannot fill the batch, the batch
    continues in the next epoch's permutation.
    """
    position = step * batch_size
    end = position + batch_size
    parts = []
    while position < end:
        epoch, place = divmod(position, count)
        part = _permutation(count, seed, epoch)[place : place + end - position]
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
