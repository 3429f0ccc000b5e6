"""Tests of change between two sets that share members.

When data are appended, most present examples were in the former set too. A test that takes the two sets for independent
would hide the effect of the new examples. So every example is counted once, in one of three independent groups: kept (in
both sets), added and removed. With a = share of the present set that was added and r = share of the former that was removed,

    mean(present) - mean(former) = a mean(added) - r mean(removed) + (r - a) mean(kept)

is a contrast of the means of independent groups. The error and the degrees of freedom of its interval are Welch's (The
generalization of Student's problem when several different population variances are involved, 1947).

The test is the same contrast of ranks, with its permutation variance (examples shuffled between the groups). If the sets
are disjoint, or if examples were only added, it is Wilcoxon's test of two samples (Individual comparisons by ranking
methods, 1945). A test with Welch's error has three times its stated level when few rows are added to a skewed column.

Shapes: N values of one group, G groups, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
EXPECTED = 5.0  # least expected count of a category if shares did not change; rarer ones are merged (Cochran, 1954)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Groups:
    """Values of the examples of both sets, by group."""

    kept: Array
    added: Array
    removed: Array

    @property
    def weights_G(self) -> Array:
        """Weights of the three groups' means in the difference of the sets' means."""
        present, former = len(self.kept) + len(self.added), len(self.kept) + len(self.removed)
        a, r = len(self.added) / present, len(self.removed) / former
        return np.array([r - a, a, -r])

    @property
    def all(self) -> tuple[Array, Array, Array]:
        return self.kept, self.added, self.removed

    @property
    def former(self) -> Array:
        return np.concatenate([self.kept, self.removed])

    @property
    def present(self) -> Array:
        return np.concatenate([self.kept, self.added])

    def map(self, function: Any) -> Groups:
        return Groups(*(function(value_N) for value_N in self.all))


@dataclass(frozen=True)
class ContrastTest:
    """A difference, its 95% interval, and the p-value of the hypothesis that it is zero."""

    before: float
    after: float
    low: float  # limits of after - before
    high: float
    p: float


def mean(groups: Groups) -> ContrastTest | None:
    """Test the change of the mean. None if a set is empty, the sets are equal, or there are fewer than 3 values."""
    if not len(groups.former) or not len(groups.present) or not (len(groups.added) or len(groups.removed)):
        return None
    used = [(w, value_N) for w, value_N in zip(groups.weights_G, groups.all, strict=True) if len(value_N)]
    pooled_N = np.concatenate(groups.all)
    if len(pooled_N) < 3:
        return None
    # A group of one value has no variance estimate: the variance of all values replaces it.
    spreads = [(value_N if len(value_N) > 1 else pooled_N) for _, value_N in used]
    parts_G = np.array([w**2 * s.var(ddof=1) / len(v) for (w, v), s in zip(used, spreads, strict=True)])
    freedom_G = np.array([len(s) - 1 for s in spreads])
    before, after = float(groups.former.mean()), float(groups.present.mean())
    variance, p = float(parts_G.sum()), _rank_test(groups)
    freedom = variance**2 / float((parts_G**2 / freedom_G).sum()) if variance > 0.0 else 1.0
    half = float(stdtrit(freedom, (1.0 + CONFIDENCE) / 2.0)) * variance**0.5
    return ContrastTest(before, after, after - before - half, after - before + half, p)


def _ranks(value_N: Array) -> Array:
    """Return ranks from 1; equal values get their mean rank. Same as scipy.stats.rankdata, whose import takes half a second."""
    _, place_N, count_V = np.unique(value_N, return_inverse=True, return_counts=True)
    rank_N: Array = (np.cumsum(count_V) - (count_V - 1) / 2)[place_N]
    return rank_N


def _rank_test(groups: Groups) -> float:
    """Return the two-sided p-value of the contrast of the ranks; equal values get their mean rank."""
    rank_N = _ranks(np.concatenate(groups.all))
    sizes = [len(value_N) for value_N in groups.all]
    ranks = np.split(rank_N, np.cumsum(sizes)[:-1])
    used = [(w, value_N) for w, value_N in zip(groups.weights_G, ranks, strict=True) if len(value_N)]
    variance = float(rank_N.var(ddof=1)) * sum(w**2 / len(value_N) for w, value_N in used)
    difference = sum(w * value_N.mean() for w, value_N in used)
    return 2.0 * float(ndtr(-abs(difference) / variance**0.5)) if variance > 0.0 else 1.0


def spread(groups: Groups) -> ContrastTest | None:
    """Test the change of the mean distance from the median of all values. A shifted group counts as more spread, too."""
    if not sum(map(len, groups.all)):
        return None
    median = float(np.median(np.concatenate(groups.all)))
    return mean(groups.map(lambda value_N: np.abs(value_N - median)))


@dataclass(frozen=True)
class Shares:
    """Shares of categories before and after, and the p-value of the hypothesis that they are equal."""

    before_C: Array
    after_C: Array
    half: float  # half width of the 95% interval of Cohen's h, the same for every category
    p: float

    @property
    def h_C(self) -> Array:
        """Cohen's h, 2 asin sqrt(after) - 2 asin sqrt(before): its error does not depend on the share (Cohen, 1988)."""
        h_C: Array = 2.0 * (np.arcsin(np.sqrt(self.after_C)) - np.arcsin(np.sqrt(self.before_C)))
        return h_C


def shares(groups: Groups, categories: int) -> Shares | None:
    """Return Pearson's chi-squared test of the contrast, or None if it is not possible.

    ``groups`` hold category indices 0 .. categories-1. If all groups have equal shares, the contrast of category c has
    variance p_c (1 - p_c) s, with s = sum of w^2 / n. So the sum of the squared contrasts over p_c s is chi-squared with
    C - 1 degrees of freedom; for two groups it is Pearson's test.
    """
    if not len(groups.former) or not len(groups.present) or not (len(groups.added) or len(groups.removed)):
        return None
    s = float(sum(w**2 / len(v) for w, v in zip(groups.weights_G, groups.all, strict=True) if len(v)))
    if s == 0.0:
        return None
    before_C, after_C = _shares(groups.former, categories), _shares(groups.present, categories)
    pooled_C = _shares(np.concatenate(groups.all), categories)
    p_C, d_C = _merge_rare(pooled_C, after_C - before_C, EXPECTED * s)
    half = float(ndtri((1.0 + CONFIDENCE) / 2.0)) * s**0.5
    if len(p_C) < 2:  # one category has nearly all examples: too few others for a test
        return None
    return Shares(before_C, after_C, half, float(chdtrc(len(p_C) - 1, float((d_C**2 / (p_C * s)).sum()))))


def _merge_rare(p_C: Array, d_C: Array, least: float) -> tuple[Array, Array]:
    """Merge the categories with a share below ``least``; if the merged share is still below, add the next rarest category."""
    order_C = np.argsort(-p_C, kind="stable")
    p_C, d_C = p_C[order_C], d_C[order_C]
    common = int((p_C >= least).sum())
    last = common if p_C[common:].sum() >= least else max(common - 1, 0)
    return np.append(p_C[:last], p_C[last:].sum()), np.append(d_C[:last], d_C[last:].sum())


def _shares(value_N: Array, categories: int) -> Array:
    share_C: Array = np.bincount(value_N.astype(np.int64), minlength=categories) / len(value_N)
    return share_C


def holm(p_M: Sequence[float]) -> list[float]:
    """Return Holm-corrected p-values: if nothing changed, any of them is below 5% in at most 5% of repetitions.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(p_M, kind="stable")
    corrected = np.maximum.accumulate(np.array(p_M)[order] * np.arange(len(p_M), 0, -1)) if len(p_M) else np.zeros(0)
    out_M = np.empty(len(p_M))
    out_M[order] = np.minimum(corrected, 1.0)
    return [float(p) for p in out_M]
