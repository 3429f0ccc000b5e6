"""How much better one model is than another, from values in pairs: of the same examples, or with the same noise.

Shapes: N pairs, B resamples, J groups of reference examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 9_999

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """How much better the challenger is. Above 0 is better, whichever direction the metric has."""

    value: float
    low: float  # one-sided limits, each at the confidence asked for
    high: float

    def text(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def difference(better_N: Array, below: float, above: float, reference_J: Array | None = None) -> Difference:
    """The mean of paired differences, with one-sided limits at confidence ``below`` and ``above``.

    Studentised bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5): the plain percentile
    bootstrap is too narrow for 20 values. The same input gives the same limits.

    ``reference_J``: differences of the two sides' jackknife pseudo-values, where the values are distances to a reference
    whose examples were chosen by chance too. Their t limit is independent of the other and is added in quadrature.
    """
    n = better_N.size
    mean, error = float(better_N.mean()), float(better_N.std(ddof=1)) / np.sqrt(n)
    # Differences that are all alike, but for rounding, have no spread to resample.
    if error <= 1e-12 * float(np.abs(better_N).max()):
        down = up = 0.0
    else:
        t_B = _studentised((better_N - mean) / error)  # free of units, and of under- and overflow
        low, high = np.quantile(t_B, [1.0 - above, below])
        down, up = float(high) * error, -float(low) * error
    if reference_J is not None:
        groups = reference_J.size
        spread = float(reference_J.std(ddof=1)) / np.sqrt(groups)
        down = float(np.hypot(down, stdtrit(groups - 1, below) * spread))
        up = float(np.hypot(up, stdtrit(groups - 1, above) * spread))
    return Difference(mean, mean - down, mean + up)


def _studentised(centred_N: Array) -> Array:
    """t of each resample of values whose mean is 0 and whose standard error is 1."""
    n = centred_N.size
    generator = np.random.default_rng(0)
    t_B = np.empty(RESAMPLES)
    rows = max(1, 2_000_000 // n)  # resamples at a time: bounds the memory
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        drawn_BN = centred_N[generator.integers(0, n, (count, n))]
        spread_B = np.maximum(drawn_BN.std(axis=1, ddof=1) / np.sqrt(n), 1e-9)
        t_B[start : start + count] = drawn_BN.mean(axis=1) / spread_B
    return t_B


def seed_margin(values: Sequence[float], confidence: float) -> float:
    """What two trainings of one recipe differ by, from their seeds alone, with no more than this confidence.

    Of n seeds with standard deviation s the difference of two more is t distributed, n - 1 degrees of freedom, in units of
    sqrt(2) s: one of them beats the other by more than t sqrt(2) s in 1 - confidence of all pairs.
    """
    n = len(values)
    return float(stdtrit(n - 1, confidence)) * float(np.sqrt(2.0)) * float(np.std(values, ddof=1))
