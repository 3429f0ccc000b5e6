"""Paired comparison of two models: values of the same examples, or of draws with the same noise.

Shapes: N pairs, B resamples, J groups of reference examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 9_999
REACH = 0.998  # largest confidence for which these have a quantile: 20 of them lie beyond it

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """Improvement of the challenger over the champion. Above 0 is better, for either direction of the metric."""

    value: float
    low: float  # one-sided limits, each at the requested confidence
    high: float

    def text(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def difference(better_N: Array, below: float, above: float, reference_J: Array | None = None) -> Difference:
    """Return the mean of paired differences, with one-sided limits at confidence ``below`` and ``above``.

    Studentised bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5): the plain percentile
    bootstrap is too narrow for 20 values. The same input gives the same limits.

    ``reference_J``: differences of the two sides' jackknife pseudo-values, if the values are distances to reference examples,
    which are a random sample too. Their t limit is independent of the other and is added in quadrature.
    """
    mean, spread = float(better_N.mean()), error(better_N)
    # Differences that are equal up to rounding have no spread to resample.
    if spread <= 1e-12 * float(np.abs(better_N).max()):
        down = up = 0.0
    else:
        t_B = _studentised((better_N - mean) / spread)  # without units, so without under- and overflow
        down, up = _quantile(t_B, below, better_N.size) * spread, _quantile(-t_B, above, better_N.size) * spread
    if reference_J is not None:
        groups, of_reference = reference_J.size, error(reference_J)
        down = float(np.hypot(down, stdtrit(groups - 1, below) * of_reference))
        up = float(np.hypot(up, stdtrit(groups - 1, above) * of_reference))
    return Difference(mean, mean - down, mean + up)


def error(better_N: Array, reference_J: Array | None = None) -> float:
    """Return the standard error of the mean of paired differences; ``reference_J`` as in ``difference``."""
    errors = [float(values.std(ddof=1)) / np.sqrt(values.size) for values in (better_N, reference_J) if values is not None]
    return float(np.hypot(*errors)) if len(errors) == 2 else errors[0]


def _quantile(t_B: Array, confidence: float, n: int) -> float:
    """Return the quantile of the resamples. Beyond their reach it grows as that of Student's t does."""
    found = float(np.quantile(t_B, min(confidence, REACH)))
    return found * float(stdtrit(n - 1, confidence) / stdtrit(n - 1, REACH)) if confidence > REACH else found


def _studentised(centred_N: Array) -> Array:
    """Return t of each resample of values with mean 0 and standard error 1."""
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
    """Return the bound on the difference that the seed alone makes between two trainings of one recipe.

    Given n seeds with standard deviation s, the difference of two further seeds is t distributed with n - 1 degrees of
    freedom, in units of sqrt(2) s: one beats the other by more than t sqrt(2) s in a share 1 - confidence of all pairs.
    """
    n = len(values)
    return float(stdtrit(n - 1, confidence)) * float(np.sqrt(2.0)) * float(np.std(values, ddof=1))
