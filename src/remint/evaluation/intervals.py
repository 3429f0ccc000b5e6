"""95% intervals of a mean, by the source of variation that they cover.

    over examples   the choice of the held-out examples: another held-out set of this size, same model
    over draws      the model's sampling noise: other samples, same held-out examples, same extractor;
                    with jackknife deviations also the choice of the held-out examples

All draws are compared with the same held-out examples, so the spread of the draws does not show the effect of that choice.
A delete-a-group jackknife estimates it: leave out one group of the examples at a time (Kott, The delete-a-group jackknife,
Journal of Official Statistics, 2001). The two half widths are added in quadrature.

Shapes: N values, R resamples, M draws, J groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
RESAMPLES = 2000
BLOCK = 4_000_000  # resampled values held in memory at a time

Array = np.ndarray[Any, Any]


def over_examples(values_N: Array, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron & Tibshirani, An introduction to the bootstrap, 1993)."""
    generator = np.random.default_rng(seed)
    count = len(values_N)
    rows = max(1, BLOCK // count)
    means_R = np.concatenate(
        [
            values_N[generator.integers(count, size=(min(rows, RESAMPLES - start), count))].mean(axis=1)
            for start in range(0, RESAMPLES, rows)
        ]
    )
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(means_R, [tail, 1.0 - tail])
    return float(low), float(high)


def over_draws(values_M: Array, reference_J: Array | None = None) -> tuple[float, float]:
    """Return Student's t interval of the mean of independent draws. For so few draws a bootstrap is too narrow.

    ``reference_J``: jackknife deviations over groups of the reference (``pseudo_values``); their t interval widens it.
    """
    mean, half = float(values_M.mean()), _half(values_M)
    if reference_J is not None:
        half = math.hypot(half, _half(reference_J))
    return mean - half, mean + half


def pseudo_values(without_J: Sequence[float]) -> Array:
    """Return the jackknife pseudo-values J theta - (J - 1) theta_j as deviations from their mean, float64 (J,).

    ``without_J``: the estimates theta_j without group j. The variance of the pseudo-values over J estimates the variance of
    the estimate. The estimate with all groups, theta, cancels.
    """
    theta_J = np.array(without_J, dtype=np.float64)
    deviation_J: Array = (len(theta_J) - 1) * (theta_J.mean() - theta_J)
    return deviation_J


def _half(values_N: Array) -> float:
    """Return half the width of Student's t interval of the mean."""
    count = len(values_N)
    return float(stdtrit(count - 1, (1.0 + CONFIDENCE) / 2.0)) * float(values_N.std(ddof=1)) / math.sqrt(count)
