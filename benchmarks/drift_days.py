"""Data of days with and without drift, and what `remint monitor` and Evidently's defaults make of them (drift_alarms.py).

Shapes: N examples, D columns, X the axes of one example, C categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage, stats
from scipy.special import chdtrc, ndtr

from remint.data import shipped
from remint.data.arrays import Dataset, Split
from remint.evaluation import contrast, drift
from remint.evaluation.contrast import Groups
from remint.records import Column, DatasetVersion, DataSpec

DAYS = 365
FORMER, DAILY, WINDOW = 400, 20, 30
IMAGES, IMAGES_DAILY = 600, 10  # digits: there are 1,797, so 119 days
SHARES = np.array([0.5, 0.3, 0.195, 0.005])
TABLE = DataSpec(
    shape=(3,),
    columns=(
        Column(name="age"),
        Column(name="income", missing=True),
        Column(name="colour", categories=("blue", "green", "red", "violet")),
    ),
)
DIGITS = DataSpec(shape=(1, 8, 8), levels=17)

Array = np.ndarray[Any, Any]
Plant = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class Stream:
    """Examples of a champion's training, and those of the days after it."""

    spec: DataSpec
    x_NX: Array
    former: int
    daily: int

    def days(self) -> int:
        return (len(self.x_NX) - self.former) // self.daily

    def of_day(self, day: int, window: int | None) -> tuple[Split, Groups]:
        """Return the present training split on a day, counted from 1, and which examples were kept, added and removed."""
        end = self.former + day * self.daily
        start = 0 if window is None else max(self.former, end - window * self.daily)
        kept = self.former if window is None else 0
        x_NX = self.x_NX[start:end]
        removed = np.arange(0 if window is None else self.former)
        return Split(x_NX, None), Groups(np.arange(kept), np.arange(kept, len(x_NX)), removed)

    def batch(self, day: int) -> Array:
        end = self.former + day * self.daily
        return self.x_NX[end - self.daily : end]


def rows(count: int, generator: np.random.Generator) -> Array:
    age_N, income_N = generator.normal(size=count), np.exp(generator.normal(size=count))
    income_N[generator.random(count) < 0.05] = np.nan
    return np.column_stack([age_N, income_N, generator.choice(4, size=count, p=SHARES)]).astype(np.float32)


def table(generator: np.random.Generator, plant: Plant | None = None, start: int = 1) -> Stream:
    """Draw the rows of a year; from day ``start`` on they have a planted drift."""
    x_ND = rows(FORMER + DAYS * DAILY, generator)
    if plant is not None:
        at = FORMER + (start - 1) * DAILY
        x_ND[at:] = plant(x_ND[at:], generator)
    return Stream(TABLE, x_ND, FORMER, DAILY)


def digits(generator: np.random.Generator, plant: Plant | None = None, start: int = 1) -> Stream:
    x_NX = np.concatenate([*shipped.digits().x]).astype(np.uint8)
    x_NX = x_NX[generator.permutation(len(x_NX))].reshape(-1, *DIGITS.shape)
    if plant is not None:
        at = IMAGES + (start - 1) * IMAGES_DAILY
        x_NX[at:] = plant(x_NX[at:], generator)
    return Stream(DIGITS, x_NX, IMAGES, IMAGES_DAILY)


def shifted(by: float, x_ND: Array, _: np.random.Generator) -> Array:
    return x_ND + np.array([by, 0.0, 0.0], dtype=np.float32)


def shared(share: float, x_ND: Array, generator: np.random.Generator) -> Array:
    """Return rows of which ``share`` more are green."""
    x_ND = x_ND.copy()
    x_ND[(x_ND[:, 2] == 0) & (generator.random(len(x_ND)) < share / SHARES[0]), 2] = 1
    return x_ND


def rescaled(x_ND: Array, _: np.random.Generator) -> Array:
    return x_ND * np.array([1.0, 10.0, 1.0], dtype=np.float32)


def blurred(x_NX: Array, _: np.random.Generator) -> Array:
    return ndimage.gaussian_filter(x_NX.astype(np.float64), sigma=(0, 0, 0.5, 0.5)).round().astype(np.uint8)


PLANTS: dict[str, tuple[Any, Plant]] = {
    "mean + 0.25 spreads": (table, partial(shifted, 0.25)),
    "mean + 0.5 spreads": (table, partial(shifted, 0.5)),
    "mean + 1 spread": (table, partial(shifted, 1.0)),
    "a class share 30% -> 40%": (table, partial(shared, 0.1)),
    "unit of a column x 10": (table, rescaled),
    "blur of digits, sigma 0.5": (digits, blurred),
}


def judged(stream: Stream, day: int, window: int | None) -> float | None:
    """Return the smallest corrected p-value of the drift on one day, as `remint monitor` finds it."""
    present, places = stream.of_day(day, window)
    version = DatasetVersion(name="", source="", raw_sha256="", spec=stream.spec, split={}, counts={}, files={})
    sides = [Dataset(version, split, split, split) for split in (Split(stream.x_NX[: stream.former], None), present)]
    return min((change.p for change in drift.statistics(sides[0], sides[1], places)), default=None)


class Ranked:
    """A column of numbers on one day after another: its rank tests from sorted values, without a sort a day."""

    def __init__(self, former_N: Array) -> None:
        self.former_N = np.sort(former_N)
        self.added_M = np.empty(0)

    def step(self, came: Array, went: Array) -> None:
        self.added_M = np.insert(self.added_M, np.searchsorted(self.added_M, np.sort(came)), np.sort(came))
        if len(went):
            self.added_M = np.delete(self.added_M, np.searchsorted(self.added_M, np.sort(went)))

    def p(self) -> list[float]:
        """Return the p-values of mean and spread: Wilcoxon's test of values, and of distances from the median of all."""
        known = np.concatenate([self.former_N, self.added_M])
        median = float(np.median(known))
        distant_N = np.abs(self.former_N - median)
        below = np.searchsorted(self.added_M, self.former_N, "left") + np.searchsorted(self.added_M, self.former_N, "right")
        inside = np.searchsorted(self.added_M, median + distant_N, "left") - np.searchsorted(
            self.added_M, median - distant_N, "right"
        )
        return [self._wilcoxon(below.sum() / 2), self._wilcoxon(float(inside.sum()))]

    def _wilcoxon(self, smaller: float) -> float:
        """Return the two-sided p-value. ``smaller``: number of pairs whose added value is below the former one."""
        n, m = len(self.former_N), len(self.added_M)
        total = n + m
        difference = (1.0 - 2.0 * smaller / (n * m)) * total / 2.0
        return 2.0 * float(ndtr(-abs(difference) / (total * (total + 1) / 12 * (1 / n + 1 / m)) ** 0.5))


def daily(stream: Stream, window: int | None, start: int = 1) -> Iterator[float | None]:
    """Yield what ``judged`` returns for each day, for a table much faster (the same tests; ties of numbers are left out)."""
    if not stream.spec.columns:
        yield from (judged(stream, day, window) for day in range(start, stream.days() + 1))
        return
    columns = [Daily(stream, place) for place in range(len(stream.spec.columns))]
    for day in range(1, stream.days() + 1):
        end = stream.former + day * stream.daily
        went = 0 if window is None else end - (window + 1) * stream.daily
        for column in columns:
            column.step(
                slice(end - stream.daily, end), slice(went, went + stream.daily) if went >= stream.former else slice(0, 0)
            )
        if day >= start:
            yield min(contrast.holm([p for column in columns for p in column.p(kept=window is None)]))


class Daily:
    """One column of a table on one day after another."""

    def __init__(self, stream: Stream, place: int) -> None:
        self.value_N, column = stream.x_NX[:, place].astype(np.float64), stream.spec.columns[place]
        self.known_N = np.isfinite(self.value_N)
        self.categories = len(column.categories)
        former = slice(0, stream.former)
        self.numbers = Ranked(self.value_N[former][self.known_N[former]]) if column.numeric else None
        self.former, self.added = self._counts(former), [0 * counts_C for counts_C in self._counts(former)]

    def _counts(self, span: slice) -> list[Array]:
        """Return how many values are missing and present, and how often each category comes."""
        missing = np.bincount(~self.known_N[span], minlength=2)
        return [missing, *([np.bincount(self.value_N[span].astype(int), minlength=self.categories)] if self.categories else [])]

    def step(self, came: slice, went: slice) -> None:
        changes = zip(self.added, self._counts(came), self._counts(went), strict=True)
        self.added = [added_C + more_C - fewer_C for added_C, more_C, fewer_C in changes]
        if self.numbers is not None:
            self.numbers.step(self.value_N[came][self.known_N[came]], self.value_N[went][self.known_N[went]])

    def p(self, *, kept: bool) -> Iterator[float]:
        if self.numbers is not None:
            yield from self.numbers.p()
        for former_C, added_C in zip(self.former, self.added, strict=True):
            yield from shares(former_C, added_C, kept=kept)


def shares(former_C: Array, added_C: Array, *, kept: bool) -> Iterator[float]:
    """Yield the p-value of evaluation/contrast.shares, if there is one, from counts. ``kept``: the former examples stay."""
    n, m = int(former_C.sum()), int(added_C.sum())
    weight = m / (n + m) if kept else 1.0
    s = weight**2 * (1 / n + 1 / m)
    after_C = (former_C + added_C) / (n + m) if kept else added_C / m
    p_C, d_C = contrast._merge_rare((former_C + added_C) / (n + m), after_C - former_C / n, contrast.EXPECTED * s)
    if len(p_C) > 1:
        yield float(chdtrc(len(p_C) - 1, float((d_C**2 / (p_C * s)).sum())))


def evidently(stream: Stream, day: int) -> list[float]:
    """Return each column's p-value by the default rules, of a day's rows against the former ones."""
    former, batch = stream.x_NX[: stream.former], stream.batch(day)
    found = []
    for place, column in enumerate(stream.spec.columns):
        a, b = former[:, place], batch[:, place]
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        if column.numeric:
            found.append(float(stats.ks_2samp(a, b).pvalue))
            continue
        counts = np.array([np.bincount(side.astype(int), minlength=len(column.categories)) for side in (a, b)])
        expected = counts[0] / counts[0].sum() * counts[1].sum()
        seen = expected > 0
        found.append(
            float(stats.chisquare(counts[1][seen], expected[seen] * counts[1][seen].sum() / expected[seen].sum()).pvalue)
        )
    return found
