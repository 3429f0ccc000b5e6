"""Distances between all pairs of two sets, a block at a time to bound the memory.

Squared distances are |a|^2 + |b|^2 - 2 a b, in float64 and by torch: one setting controls the number of threads.
Cancellation leaves an error of the order of ROUNDING (|a|^2 + |b|^2), so equal distances may come out unequal. Comparisons
allow for this error.

Shapes: N, M examples, D coordinates, A, B rows and columns of a block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2048  # examples of either set at a time: 32 MiB of distances
WIDE = 2**21  # coordinates of one set at a time: 16 MiB
ROUNDING = 1e-12


def rows(dims: int) -> int:
    """Return how many examples of these coordinates are in memory at a time."""
    return max(1, min(BLOCK, WIDE // dims))


def blocks(a_ND: Tensor, b_MD: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows of a, columns of b, and their squared distances d_AB."""
    square_N, square_M = a_ND.square().sum(dim=1), b_MD.square().sum(dim=1)
    for at in range(0, len(a_ND), BLOCK):
        rows = slice(at, at + BLOCK)
        for start in range(0, len(b_MD), BLOCK):
            columns = slice(start, start + BLOCK)
            sums_AB = square_N[rows, None] + square_M[columns]
            yield rows, columns, torch.addmm(sums_AB, a_ND[rows], b_MD[columns].T, alpha=-2.0).clamp_(min=0.0)


def radii(a_ND: Tensor, neighbours: int) -> Tensor:
    """Return the squared distance of each example to its K-th nearest other example, (N,)."""
    nearest_NK = torch.full((len(a_ND), neighbours), torch.inf, dtype=a_ND.dtype)
    for rows, columns, d_AB in blocks(a_ND, a_ND):
        itself_A = torch.arange(len(a_ND))[rows]
        here = (itself_A >= columns.start) & (itself_A < columns.stop)
        d_AB[here, itself_A[here] - columns.start] = torch.inf
        both = torch.cat([nearest_NK[rows], d_AB], dim=1)
        nearest_NK[rows] = both.topk(neighbours, dim=1, largest=False).values
    return nearest_NK[:, -1]


def rounding_error(a_ND: Tensor) -> Tensor:
    """Return the bound of the rounding error of squared distances to these examples, (N,)."""
    return ROUNDING * a_ND.square().sum(dim=1)


def nearest(a_ND: Tensor, b_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each of a to the nearest of b, and the index of that one.

    The distance is computed from the difference itself, so it is exactly 0 for equal examples.
    """
    best_N, place_N = torch.full((len(a_ND),), torch.inf, dtype=a_ND.dtype), torch.zeros(len(a_ND), dtype=torch.int64)
    for rows, columns, d_AB in blocks(a_ND, b_MD):
        here_A, found_A = d_AB.min(dim=1)
        closer_A = here_A < best_N[rows]
        best_N[rows] = torch.where(closer_A, here_A, best_N[rows])
        place_N[rows] = torch.where(closer_A, found_A + columns.start, place_N[rows])
    return (a_ND - b_MD[place_N]).norm(dim=1), place_N
