"""Frechet distance of two sets of features, each summarised as a Gaussian.

    d(1, 2) = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

Dowson & Landau, The Frechet distance between multivariate normal distributions, 1982; used on Inception
features by Heusel et al., GANs trained by a two time-scale update rule, 2017. Everything is float64, and computed by
torch, so that one setting says how many threads there are.

Shapes: N examples, D features, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moments:
    """The sufficient statistics of a set of features: they can be merged, so that a set need not fit in memory.

    Merging shifts by the means (Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing
    sample variances, 1979): nothing cancels, and the batch size does not show.
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

    @property
    def covariance_DD(self) -> Tensor:
        """The unbiased estimate, which needs two examples."""
        assert self.count > 1, "the covariance of one example is not defined"
    def __sub__(self, part: Moments) -> Moments:
        """Of what remains when a part is taken away: the inverse of the sum."""
        count = self.count - part.count
        mean_D = self.mean_D + (self.mean_D - part.mean_D) * (part.count / count)
        shift_D = part.mean_D - mean_D
        scatter_DD = self.scatter_DD - part.scatter_DD - torch.outer(shift_D, shift_D) * (count * part.count / self.count)
        return Moments(count, mean_D, scatter_DD)

        return self.scatter_DD / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance between the Gaussians of two sets, in squared units of the features; 0 for equal sets.

    With S = F F^T the eigenvalues of S1^1/2 S2 S1^1/2 are those of F1^T S2 F1, the squares of the singular values
    of F1^T F2: their sum is the trace term. No square root is taken of an eigenvalue that is only rounding, so
    covariances without full rank (fewer examples than features, constant features) lose no accuracy.
    """
    shift_D = a.mean_D - b.mean_D
    sa_DD, sb_DD = a.covariance_DD, b.covariance_DD
    overlap = torch.linalg.svdvals(_factor(sa_DD).T @ _factor(sb_DD)).sum()
    return max(0.0, float(shift_D @ shift_D + sa_DD.trace() + sb_DD.trace() - 2.0 * overlap))


def _factor(s_DD: Tensor) -> Tensor:
    """F_DR with F F^T = S, R the numerical rank of S."""
    values_D, vectors_DD = torch.linalg.eigh(s_DD)
    kept = values_D > values_D[-1] * len(s_DD) * torch.finfo(torch.float64).eps
    factor_DR: Tensor = vectors_DD[:, kept] * values_D[kept].sqrt()
    return factor_DR
