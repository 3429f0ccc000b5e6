"""Kernel distance of samples to held-out examples: the squared maximum mean discrepancy with a cubic kernel.

    k(a, b) = (a.b / D + 1)^3
    kid     = mean of k over pairs of samples + mean over pairs of held-out examples - 2 mean over samples x held-out

Each mean is over pairs of different examples, so the estimate is unbiased. For equal distributions it is below 0 in half of
all cases. Lower is better. Binkowski et al., Demystifying MMD GANs, 2018, define KID in Inception features and average it
over subsets of the examples; here it covers all pairs, a block at a time.

Shapes: N, M examples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from remint.evaluation.context import EvaluationContext, Measurement, Metric, finite
from remint.models.contract import CanSample
from remint.settings.catalogue import FEATURES, Features, in_features

BLOCK = 2048  # examples of either set at a time: 32 MiB of kernel values


def kid(features: Features, model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``kid``: the mean over repeated draws of n samples, each compared with the same n held-out examples."""
    name = in_features("kid", features)
    n = context.size(name, 2)
    real_ND = torch.from_numpy(context.real(features))
    within = within_mean(real_ND)
    values = []
    for draw in context.draws:
        drawn_ND = torch.from_numpy(context.drawn(features, model, draw))
        values.append(within_mean(drawn_ND) + within - 2.0 * cross_mean(drawn_ND, real_ND))
    how = context.measured_in(features, kernel="(a.b/D + 1)^3", estimate="unbiased")
    return {name: Measurement.over_draws(finite(np.array(values, dtype=np.float64), name), n, context, **how)}


def cross_mean(a_ND: Tensor, b_MD: Tensor) -> float:
    """Return the mean of the kernel over all pairs of one example of each set."""
    return _sum(a_ND, b_MD) / (len(a_ND) * len(b_MD))


def within_mean(a_ND: Tensor) -> float:
    """Return the mean of the kernel over all pairs of two different examples of one set."""
    count = len(a_ND)
    itself_N = _cubic(a_ND.square().sum(dim=1), a_ND.shape[1])
    return (_sum(a_ND, a_ND) - float(itself_N.sum())) / (count * (count - 1))


def _sum(a_ND: Tensor, b_MD: Tensor) -> float:
    total = 0.0
    for at in range(0, len(a_ND), BLOCK):
        for start in range(0, len(b_MD), BLOCK):
            product_AB = a_ND[at : at + BLOCK] @ b_MD[start : start + BLOCK].T
            total += float(_cubic(product_AB, a_ND.shape[1]).sum())
    return total


def _cubic(product: Tensor, dims: int) -> Tensor:
    kernel: Tensor = (product / dims + 1.0) ** 3
    return kernel


METRICS = {in_features("kid", features): Metric(partial(kid, features)) for features in FEATURES}
