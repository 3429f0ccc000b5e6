"""Shift of the examples to score away from the calibration examples: p-values hold only for exchangeable examples.

    numbers, scores, brightness and contrast   two-sample Kolmogorov-Smirnov
    categories, missing values                 chi-squared test of two samples

The p-values are corrected for their number (Holm): without a shift, one is named with a probability of at most LEVEL. Many
anomalies are a shift too: the two cannot be told apart.

Shapes: n calibration examples, M examples to score, X the axes of one example, V views of one example.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from remint.records import Column, DataSpec, Record

LEVEL = 0.01
FEW = 5  # expected examples of a category, below which the chi-squared approximation is poor
MOST = 10_000  # examples of a batch that are tested, evenly spaced

Array = np.ndarray[Any, Any]


class Shift(Record):
    """One property whose distribution differs from that of the calibration examples."""

    of: str  # a column, "scores", "brightness" or "contrast"
    p: float  # corrected for the number of tests

    def text(self) -> str:
        return f"{self.of} (p = {self.p:.2g})"


def views(x_BX: Array, spec: DataSpec) -> Array:
    """Return what is compared of each example, float32 (B, V): the columns of a row; brightness and contrast of an image."""
    if spec.is_table:
        return np.asarray(x_BX, np.float32)
    flat_BD = np.asarray(x_BX, np.float32).reshape(len(x_BX), -1) / (spec.levels - 1)
    return np.stack([flat_BD.mean(1), flat_BD.std(1)], 1)


def shifts(score_n: Array, score_M: Array, view_nV: Array, view_MV: Array, spec: DataSpec) -> tuple[Shift, ...]:
    """Return the properties that differ at level LEVEL, the clearest first. Scores and views: calibration, then new ones."""
    named = list(spec.columns) if spec.is_table else [Column(name="brightness"), Column(name="contrast")]
    tests = [("scores", _numbers(score_n, score_M))]
    for column, old_n, new_M in zip(named, view_nV.T, view_MV.T, strict=True):
        tests += [(column.name, p) for p in _column(column, old_n, new_M)]
    found: list[Shift] = []
    largest = 0.0
    for place, (name, p) in enumerate(sorted(tests, key=lambda test: test[1])):
        largest = max(largest, min(1.0, p * (len(tests) - place)))
        if largest < LEVEL and name not in {each.of for each in found}:
            found.append(Shift(of=name, p=largest))
    return tuple(found)


def _column(column: Column, old_n: Array, new_M: Array) -> list[float]:
    gap_n, gap_M = np.isnan(old_n), np.isnan(new_M)
    found = [_shares(*(np.bincount(gap, minlength=2) for gap in (gap_n, gap_M)))] if gap_n.any() or gap_M.any() else []
    old_n, new_M = old_n[~gap_n], new_M[~gap_M]
    if not len(old_n) or not len(new_M):
        return found
    if column.numeric:
        return [*found, _numbers(old_n, new_M)]
    return [*found, _shares(*(np.bincount(each.astype(np.int64), minlength=len(column.categories)) for each in (old_n, new_M)))]


def _numbers(old_n: Array, new_M: Array) -> float:
    from scipy.stats import ks_2samp

    return float(ks_2samp(old_n, new_M, method="auto").pvalue)


def _shares(old_C: Array, new_C: Array) -> float:
    """Return the p-value of the chi-squared test of two counts by category. Categories with few examples are one."""
    from scipy.stats import chi2_contingency

    count_2C = np.stack([old_C, new_C]).astype(np.float64)
    rare_C = count_2C.sum(0) * count_2C.sum(1).min() < FEW * count_2C.sum()  # the expected count in the smaller sample
    count_2C = np.concatenate([count_2C[:, ~rare_C], count_2C[:, rare_C].sum(1, keepdims=True)], 1)
    count_2C = count_2C[:, count_2C.sum(0) > 0]
    return float(chi2_contingency(count_2C).pvalue) if count_2C.shape[1] > 1 else 1.0
