"""Which examples each step sees: a pure function of (seed, step), so that a resumed run needs no state of it.

Position p of the endless stream of examples lies in epoch p // count, at place p % count of that epoch's
permutation. Step s takes the positions s * batch_size .. (s + 1) * batch_size - 1: every batch is full, and
each epoch holds every example once. (The idea of EDM2's InfiniteSampler: Karras et al., 2024.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


@lru_cache(maxsize=4)  # a batch may touch two epochs; the rest is room for a second stream
def _permutation(count: int, seed: int, epoch: int) -> Indices:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> Indices:
    """Places of the global batch's examples in the training split, int64, shape (batch_size,).

    ``count``: examples in the split; ``step``: steps already done. A batch that an epoch cannot fill
    goes on in the next epoch's permutation.
    """
    position = step * batch_size
    end = position + batch_size
    parts = []
    while position < end:
        epoch, place = divmod(position, count)
        taken = _permutation(count, seed, epoch)[place : place + end - position]
        parts.append(taken)
        position += len(taken)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
