"""Two sets that share members, held against each other: what changed, and whether chance would do as much.

Where data are appended, most of what is there now was there before. To take the two sets for independent would hide what
the new examples bring. So every example is counted once, in one of three independent groups: kept (in both sets), added
and removed. With a the share of the present set that was added, r the share of the former that was removed,

    mean(present) - mean(former) = a mean(added) - r mean(removed) + (r - a) mean(kept)

is a contrast of the means of independent groups. The error and the degrees of freedom of its interval are Welch's (The
generalization of Student's problem when several different population variances are involved, 1947).

The test is the same contrast of ranks, with the variance that shuffling the examples between the groups gives it. With
nothing in common, and where examples were only added, that is Wilcoxon's test of two samples (Individual comparisons by
ranking methods, 1945). A test by Welch's error has three times its stated level where few rows are added to a skewed column.

Shapes: N values of one group, G groups, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
EXPECTED = 5.0  # of a category, if shares did not change: rarer ones are taken together (Cochran, 1954)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Groups:
    """Values of the examples of both sets, by where they stand."""

    kept: Array
    added: Array
    removed: Array

    @property
    def weights_G(self) -> Array:
        """Of the three groups' means in the difference of the sets' means."""
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
    """A difference, its 95% interval, and the p-value of the test that there is none."""

    before: float
    after: float
    low: float  # limits of after - before
    high: float
    p: float


def mean(groups: Groups) -> ContrastTest | None:
    """How the mean changed, and whether the values did; None where a set is empty, or the two are one."""
    if not len(groups.former) or not len(groups.present) or not (len(groups.added) or len(groups.removed)):
        return None
    used = [(w, value_N) for w, value_N in zip(groups.weights_G, groups.all, strict=True) if len(value_N)]
    pooled_N = np.concatenate(groups.all)
    if len(pooled_N) < 3:
        return None
    # The variance of a single value is not known: it is taken to be that of all.
    spreads = [(value_N if len(value_N) > 1 else pooled_N) for _, value_N in used]
    parts_G = np.array([w**2 * s.var(ddof=1) / len(v) for (w, v), s in zip(used, spreads, strict=True)])
    freedom_G = np.array([len(s) - 1 for s in spreads])
    before, after = float(groups.former.mean()), float(groups.present.mean())
    variance, p = float(parts_G.sum()), _rank_test(groups)
    freedom = variance**2 / float((parts_G**2 / freedom_G).sum()) if variance > 0.0 else 1.0
    half = float(stdtrit(freedom, (1.0 + CONFIDENCE) / 2.0)) * variance**0.5
    return ContrastTest(before, after, after - before - half, after - before + half, p)


def _ranks(value_N: Array) -> Array:
    """Ranks from 1, equal values sharing their mean, as scipy.stats.rankdata, whose import takes half a second."""
    _, place_N, count_V = np.unique(value_N, return_inverse=True, return_counts=True)
    rank_N: Array = (np.cumsum(count_V) - (count_V - 1) / 2)[place_N]
    return rank_N


def _rank_test(groups: Groups) -> float:
    """Two-sided p-value of the contrast of the ranks, equal values sharing theirs."""
    rank_N = _ranks(np.concatenate(groups.all))
    sizes = [len(value_N) for value_N in groups.all]
    ranks = np.split(rank_N, np.cumsum(sizes)[:-1])
    used = [(w, value_N) for w, value_N in zip(groups.weights_G, ranks, strict=True) if len(value_N)]
    variance = float(rank_N.var(ddof=1)) * sum(w**2 / len(value_N) for w, value_N in used)
    difference = sum(w * value_N.mean() for w, value_N in used)
    return 2.0 * float(ndtr(-abs(difference) / variance**0.5)) if variance > 0.0 else 1.0


def spread(groups: Groups) -> ContrastTest | None:
    """How the mean distance from the median of all values changed. A group that lies elsewhere is spread more, too."""
    if not sum(map(len, groups.all)):
        return None
    median = float(np.median(np.concatenate(groups.all)))
    return mean(groups.map(lambda value_N: np.abs(value_N - median)))


@dataclass(frozen=True)
class Shares:
    """Shares of categories before and after, and the p-value of the test that they are the same."""

    before_C: Array
    after_C: Array
    half: float  # half of the 95% interval of Cohen's h, which is the same for each
    p: float

    @property
    def h_C(self) -> Array:
        """2 asin sqrt(after) - 2 asin sqrt(before), whose error does not depend on the share (Cohen, 1988)."""
        h_C: Array = 2.0 * (np.arcsin(np.sqrt(self.after_C)) - np.arcsin(np.sqrt(self.before_C)))
        return h_C


def shares(groups: Groups, categories: int) -> Shares | None:
    """Pearson's chi-squared test of the contrast; ``groups`` hold places 0 .. categories-1. None where it cannot be made.

    With equal shares in all groups the contrast of category c has variance p_c (1 - p_c) s, s = sum of w^2 / n, so that
    the sum of the squared contrasts over p_c s is chi-squared with C - 1 degrees of freedom; for two groups it is Pearson's.
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
    if len(p_C) < 2:  # one category has nearly all: nothing can be told
        return None
    return Shares(before_C, after_C, half, float(chdtrc(len(p_C) - 1, float((d_C**2 / (p_C * s)).sum()))))


def _merge_rare(p_C: Array, d_C: Array, least: float) -> tuple[Array, Array]:
    """Categories with a share below ``least`` as one, which joins the rarest of the others where it is below, too."""
    order_C = np.argsort(-p_C, kind="stable")
    p_C, d_C = p_C[order_C], d_C[order_C]
    common = int((p_C >= least).sum())
    last = common if p_C[common:].sum() >= least else max(common - 1, 0)
    return np.append(p_C[:last], p_C[last:].sum()), np.append(d_C[:last], d_C[last:].sum())


def _shares(value_N: Array, categories: int) -> Array:
    share_C: Array = np.bincount(value_N.astype(np.int64), minlength=categories) / len(value_N)
    return share_C


def holm(p_M: Sequence[float]) -> list[float]:
    """p-values corrected so that chance gives one below 5% in 5% of repetitions (Holm, A simple sequentially rejective
    multiple test procedure, 1979)."""
    order = np.argsort(p_M, kind="stable")
    corrected = np.maximum.accumulate(np.array(p_M)[order] * np.arange(len(p_M), 0, -1)) if len(p_M) else np.zeros(0)
    out_M = np.empty(len(p_M))
    out_M[order] = np.minimum(corrected, 1.0)
    return [float(p) for p in out_M]
