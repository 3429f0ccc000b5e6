"""Near copies of examples among others: all pairs within a limit, in bounded memory.

Each example has a projection, whose distances are never above those of the examples (evaluation/leakage.py). The search looks
for near pairs of projections, sorted along their axis of greatest variance, and compares these in full.

Shapes: N, M examples, X the axes of one, P numbers of a projection, B block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK, WIDE = 1024, 8192  # held-out and training examples compared at a time
PAIRS = 2**21  # numbers of either side of the pairs that are compared in full at a time
REDUCED = 2**22  # numbers of the projections of either side in memory at a time

Array = np.ndarray[Any, Any]


class CopyMetric(Protocol):
    """The distance of two examples."""

    limit: float  # of near copies

    def full(self, x_BX: Array) -> Array:
        """Return the coordinates of examples, float64 (B, D)."""
        ...

    def reduced(self, x_BX: Array) -> Array:
        """Return their projections, (B, P)."""
        ...


def near_copies(x_NX: Array, others_N: Array, x_MX: Array, metric: CopyMetric) -> Array:
    """Return the index of the nearest near copy among x_MX of each of ``others_N``; -1: it has none, or is not one of these.

    A row is no copy of itself. A part of either side is in memory at a time.
    """
    place_N, apart_N = np.full(len(x_NX), -1, dtype=np.int64), np.full(len(x_NX), np.inf)
    numbers = metric.reduced(x_MX[:1]).shape[1]
    size, most = max(BLOCK, REDUCED // numbers), max(1, PAIRS // math.prod(x_MX.shape[1:]))
    for at in range(0, len(others_N), size):
        some_N = others_N[at : at + size]
        p_NP = _reduced(x_NX, some_N, metric)
        for start in range(0, len(x_MX), size):
            some_M = np.arange(start, min(start + size, len(x_MX)))
            p_MP = _reduced(x_MX, some_M, metric)
            for left_B, right_B in _near_projections(p_NP, some_N, p_MP, some_M, metric.limit, most):
                apart_B = np.sqrt(((metric.full(x_NX[left_B]) - metric.full(x_MX[right_B])) ** 2).sum(axis=1))
                apart_B[apart_B > metric.limit] = np.inf
                if x_NX is x_MX:
                    apart_B[left_B == right_B] = np.inf
                for held_out, training, apart in zip(left_B.tolist(), right_B.tolist(), apart_B.tolist(), strict=True):
                    if apart < np.inf and (apart, training) < (apart_N[held_out], place_N[held_out]):
                        place_N[held_out], apart_N[held_out] = training, apart
    return place_N


def _near_projections(
    p_NP: Tensor, some_N: Array, p_MP: Tensor, some_M: Array, limit: float, most: int
) -> Iterator[tuple[Array, Array]]:
    """Yield blocks of at most ``most`` pairs of these examples, as indices in their splits, whose projections are near."""
    centre_P = p_MP.mean(dim=0)
    p_MP, p_NP = p_MP - centre_P, p_NP - centre_P
    axis_P = torch.linalg.eigh((p_MP.T @ p_MP).double()).eigenvectors[:, -1].to(p_MP.dtype)
    (p_NP, along_N, order_N), (p_MP, along_M, order_M) = _sorted(p_NP, axis_P), _sorted(p_MP, axis_P)
    for i_B, j_B in _candidates(p_NP, along_N, p_MP, along_M, limit, most):
        yield some_N[order_N[i_B]], some_M[order_M[j_B]]


def _reduced(x_NX: Array, chosen_N: Array, metric: CopyMetric) -> Tensor:
    blocks = [torch.from_numpy(metric.reduced(x_NX[chosen_N[at : at + BLOCK]])) for at in range(0, len(chosen_N), BLOCK)]
    return torch.cat(blocks)


def _sorted(p_NP: Tensor, axis_P: Tensor) -> tuple[Tensor, Array, Array]:
    """Sort projections by their coordinate on an axis; return projections, coordinates and order."""
    along_N = p_NP @ axis_P
    order_N = torch.argsort(along_N, stable=True)
    return p_NP[order_N], along_N[order_N].numpy(), order_N.numpy()


def _candidates(
    p_NP: Tensor, along_N: Array, p_MP: Tensor, along_M: Array, limit: float, most: int
) -> Iterator[tuple[Array, Array]]:
    """Yield blocks of pairs, as indices in the two sorted lists: all pairs within ``limit``, and few others."""
    square_N, square_M = p_NP.square().sum(dim=1), p_MP.square().sum(dim=1)
    # |a|^2 + |b|^2 - 2 a b loses digits if a and b are long: ``slack`` allows for this error.
    slack = 16.0 * torch.finfo(p_NP.dtype).eps * float(square_N.max() + square_M.max())
    reach = limit + slack**0.5
    for at in range(0, len(p_NP), BLOCK):
        rows = slice(at, at + BLOCK)
        first, last = np.searchsorted(along_M, [along_N[rows][0] - reach, along_N[rows][-1] + reach])
        for start in range(int(first), int(last), WIDE):
            columns = slice(start, min(start + WIDE, int(last)))
            apart_BM = torch.addmm(square_M[columns], p_NP[rows], p_MP[columns].T, alpha=-2.0)
            i_B, j_B = (apart_BM <= (limit**2 + slack - square_N[rows, None])).nonzero().T.numpy()
            for chunk in range(0, len(i_B), most):
                yield i_B[chunk : chunk + most] + at, j_B[chunk : chunk + most] + start
