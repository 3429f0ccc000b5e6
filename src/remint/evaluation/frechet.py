"""Frechet distance of two sets of features, each summarised as a Gaussian.

    d(1, 2) = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

Dowson & Landau, The Frechet distance between multivariate normal distributions, 1982; used on Inception
features by Heusel et al., GANs trained by a two time-scale update rule, 2017. Everything is float64, and computed by
torch: one setting controls the number of threads.

Shapes: N examples, D features, R rank of a matrix or ranks of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ACCURACY = 5e-9  # largest error of the fast method, relative to the distance
BLOCK = 256  # columns of a triangular matrix multiplied at a time

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a set of features. They can be merged, so a set need not fit in memory.

    Merging shifts by the means (Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing
    sample variances, 1979): there is no cancellation, and the batch size has no effect.
    """

    count: int
    mean_D: Tensor
    scatter_DD: Tensor  # sum over the examples of (f - mean)(f - mean)^T

    @classmethod
    def of(cls, f_ND: Array) -> Moments:
        features_ND = torch.from_numpy(np.ascontiguousarray(f_ND, dtype=np.float64))
        mean_D = features_ND.mean(dim=0)
        centred_ND = features_ND - mean_D
        return cls(count=len(f_ND), mean_D=mean_D, scatter_DD=centred_ND.T @ centred_ND)

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        shift_D = other.mean_D - self.mean_D
        scatter_DD = self.scatter_DD + other.scatter_DD + torch.outer(shift_D, shift_D) * (self.count * other.count / count)
        return Moments(count, self.mean_D + shift_D * (other.count / count), scatter_DD)

    def __sub__(self, part: Moments) -> Moments:
        """Return the moments of the rest after removal of ``part``: the inverse of the sum."""
        count = self.count - part.count
        mean_D = self.mean_D + (self.mean_D - part.mean_D) * (part.count / count)
        shift_D = part.mean_D - mean_D
        scatter_DD = self.scatter_DD - part.scatter_DD - torch.outer(shift_D, shift_D) * (count * part.count / self.count)
        return Moments(count, mean_D, scatter_DD)

    @property
    def covariance_DD(self) -> Tensor:
        """Unbiased estimate of the covariance; needs two examples."""
        assert self.count > 1, "the covariance of one example is not defined"
        return self.scatter_DD / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the distance between the Gaussians of two sets, in squared units of the features; 0 for equal sets.

    The fast method (_short_overlap) computes the trace term if its error is at most ACCURACY of the distance. That holds for
    sets that are not nearly equal and whose covariances have full rank and are not ill-conditioned. Else the slow method
    (_long_overlap) computes it; that one stays accurate without full rank (fewer examples than features, constant features).
    """
    shift_D = a.mean_D - b.mean_D
    sa_DD, sb_DD = a.covariance_DD, b.covariance_DD
    apart = float(shift_D @ shift_D + sa_DD.trace() + sb_DD.trace())
    overlap, error = _short_overlap(sa_DD, sb_DD)
    if not error <= ACCURACY * (apart - 2.0 * overlap):
        overlap = _long_overlap(sa_DD, sb_DD)
    return max(0.0, apart - 2.0 * overlap)


def _short_overlap(sa_DD: Tensor, sb_DD: Tensor) -> tuple[float, float]:
    """Return the trace term, and the error that it causes in the distance.

    The term is the sum of the square roots of the eigenvalues v of L^T S2 L, with S1 = L L^T. Rounding is modelled as a
    random matrix of norm r = eps |S1| |S2| with independent entries of about r / D^1/2: it moves the root of an eigenvalue
    by r / (D v)^1/2. The error is infinite if there is no L or some v is below r: without full rank, such eigenvalues
    consist of rounding only.
    """
    lower_DD, failed = torch.linalg.cholesky_ex(sa_DD)
    if failed:
        return 0.0, math.inf
    values_D = torch.linalg.eigvalsh(_between(lower_DD, sb_DD))
    rounding = torch.finfo(torch.float64).eps * float(sa_DD.norm() * sb_DD.norm())
    if not values_D[0] > rounding:
        return 0.0, math.inf
    error = 2.0 * rounding * float((1.0 / (values_D * len(values_D))).sum()) ** 0.5
    return float(values_D.sqrt().sum()), error


def _between(lower_DD: Tensor, s_DD: Tensor) -> Tensor:
    """Return the lower triangle of L^T S L; entries above it are undefined. Blocks skip the multiplications by zeros of L."""
    blocks = [slice(at, at + BLOCK) for at in range(0, len(s_DD), BLOCK)]
    right_DD, product_DD = torch.zeros_like(s_DD), torch.zeros_like(s_DD)
    for block in blocks:
        below = slice(block.start, None)
        right_DD[below, block] = s_DD[below, below] @ lower_DD[below, block]
    for block in blocks:
        below, before = slice(block.start, None), slice(0, block.stop)
        product_DD[block, before] = lower_DD[below, block].T @ right_DD[below, before]
    return product_DD


def _long_overlap(sa_DD: Tensor, sb_DD: Tensor) -> float:
    """Return the trace term as the sum of the singular values of F1^T F2, with S = F F^T.

    Their squares are the eigenvalues of S1^1/2 S2 S1^1/2. This takes no root of an eigenvalue that is only rounding.
    """
    return float(torch.linalg.svdvals(_factor(sa_DD).T @ _factor(sb_DD)).sum())


def _factor(s_DD: Tensor) -> Tensor:
    """Return F_DR with F F^T = S, where R is the numerical rank of S."""
    values_D, vectors_DD = torch.linalg.eigh(s_DD)
    kept = values_D > values_D[-1] * len(s_DD) * torch.finfo(torch.float64).eps
    factor_DR: Tensor = vectors_DD[:, kept] * values_D[kept].sqrt()
    return factor_DR
