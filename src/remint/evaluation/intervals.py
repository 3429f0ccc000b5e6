"""95% intervals of a mean, and what each of them covers.

    over examples   the choice of the held-out examples: another held-out set of this size, same model
    over draws      the model's sampling noise: other samples, same held-out examples, same extractor

Shapes: N values, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
RESAMPLES = 2000
BLOCK = 4_000_000  # resampled values held in memory at a time

Array = np.ndarray[Any, Any]


def over_examples(values_N: Array, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron & Tibshirani, An introduction to the bootstrap, 1993)."""
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


def over_draws(values_N: Array) -> tuple[float, float]:
    """Student's t interval of the mean of independent draws. Their number is small, for which a bootstrap is too narrow."""
    count = len(values_N)
    mean = float(values_N.mean())
    half = float(stdtrit(count - 1, (1.0 + CONFIDENCE) / 2.0)) * float(values_N.std(ddof=1)) / count**0.5
    return mean - half, mean + half
