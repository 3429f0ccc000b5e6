"""Conformal p-values of scores, and the examples of a batch that they flag.

    p = (1 + #{i: c_i > s} + t) / (n + 1)    c_i: scores of n calibration examples; t: equal scores that the tie puts above s

If the new example and the calibration examples are exchangeable, p is uniform on 1/(n+1), .., 1: it is at most alpha with
probability at most alpha (Vovk et al., Algorithmic Learning in a Random World, 2005). The probability is over the
calibration examples too. In a batch, the Benjamini-Hochberg procedure bounds the expected share of false ones among the
flagged examples; it holds for conformal p-values, which share one calibration set (Bates et al., Testing for outliers with
conformal p-values, 2023).

Shapes: n calibration examples, M examples of a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def p_values(calibration_n: Array, score_M: Array, tie_M: Array) -> Array:
    """Return the p-value of each score. ``tie_M``: numbers in [0, 1) that place a score among equal calibration scores."""
    ascending_n = np.sort(calibration_n)
    above_M = len(ascending_n) - np.searchsorted(ascending_n, score_M, side="right")
    equal_M = len(ascending_n) - above_M - np.searchsorted(ascending_n, score_M, side="left")
    found: Array = (1 + above_M + np.floor(tie_M * (equal_M + 1))) / (len(ascending_n) + 1)
    return found


def benjamini_hochberg(p_M: Array, fdr: float) -> Array:
    """Return the flagged examples, bool (M,): those up to the largest p-value p_(k) that is at most fdr k / M."""
    ascending_M = np.sort(p_M)
    passed_M = ascending_M <= fdr * np.arange(1, len(p_M) + 1) / len(p_M)
    return p_M <= (ascending_M[passed_M][-1] if passed_M.any() else -1.0)


def fewest_flagged(count: int, calibrated: int, fdr: float) -> int | None:
    """Return the least number of examples that Benjamini-Hochberg can flag in a batch of ``count``; None: it can flag none.

    No p-value is below 1 / (n+1). So the k examples with that p-value are flagged only if 1 / (n+1) <= fdr k / M.
    """
    reached = fdr * (calibrated + 1) / (1 - 1e-12)  # a k that is whole but for rounding counts as whole
    return None if reached < 1 else max(1, math.ceil(count / reached))
