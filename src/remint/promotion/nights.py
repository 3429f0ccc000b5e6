"""Evidence of many nights that retrained models are better than seed-to-seed variation explains.

Each night's gain is a draw: by how much the challenger's metric is better than the champion's. While the recipe and the law of
the data stay the same, the gains of all nights, of further seeds, and the champion's own gain of 0 have one distribution. The
evidence is the likelihood ratio of "the mean rose on some night" to that. It is an e-process: while nothing has changed, it
ever exceeds 1 / level with a probability of at most ``level``, over all nights together and without a planned last one. So a
look costs nothing, and each possible start of the rise has a weight, of which all together are at most 1.

    ratio      for a rise of d standard deviations, d ~ N(0, g): of Student's t for two groups (Rouder et al., Bayesian t tests
               for accepting and rejecting the null hypothesis, 2009). Mean and variance of the draws are unknown (right Haar
               prior), so the ratio may be looked at each night (Hendriksen, de Heide & Gruenwald, Optional stopping with Bayes
               factors, 2021). Half each for g = 16 and 4096: rises of some standard deviations, and very large ones, which one
               night shows.
    examples   A night's gain holds an error of its held-out examples. On the same examples the champion's part of it is the
               same each night. On other examples it is another, which looks like a rise: its variance is then part of the null
               hypothesis.

Shapes: A draws before the nights, N nights, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from remint.evaluation.intervals import Array

SCALES = (16.0, 4096.0)  # variances of a rise, in units of the variance of the draws
TINY = 1e-12  # relative spread below which draws are equal up to rounding
FORECAST = (*range(1, 11), 12, 15, 20, 25, 30, 40, 50, 60, 90, 120, 180, 270, 365)  # nights that are tried for a forecast
MOST = 1e12  # evidence that is told; more is no different


@dataclass(frozen=True)
class Draws:
    """Gains over one champion, in the metric's unit; above 0 is better."""

    before_A: tuple[float, ...]  # of the champion's own recipe: its own gain 0, and of further seeds and nights
    nights_N: tuple[float, ...] = ()  # each may be the first of better ones
    weights_N: tuple[float, ...] = ()  # of each as the first one
    error: float = 0.0  # standard error over held-out examples of a night's gain, root of the mean square
    moved: float = 0.0  # share of tonight's held-out examples that were not there at the first of these nights
    other_seeds: tuple[float, ...] = ()  # values of seeds that tell the spread only: of another recipe or other data

    @property
    def degrees(self) -> int:
        """Degrees of freedom of ``spread``."""
        return sum(max(0, len(group) - 1) for group in (self.before_A, self.other_seeds))

    @property
    def spread(self) -> float:
        """Standard deviation of draws that are sure to be of one recipe; 0.0 if it is not known."""
        squares = _squares(self.before_A) + _squares(self.other_seeds)
        return float(np.sqrt(squares / self.degrees)) if self.degrees else 0.0


def evidence(draws: Draws) -> float:
    """Return the evidence that the last nights are better, 0.0 or more; 1 / level is enough at an error level.

    0.0 as well if there are too few draws to know their spread.
    """
    n, a = len(draws.nights_N), len(draws.before_A)
    gain_N, weight_N = np.asarray(draws.nights_N), np.asarray(draws.weights_N)
    all_M = np.concatenate([np.asarray(draws.before_A), gain_N])
    scale = float(np.abs(np.concatenate([all_M, np.asarray(draws.other_seeds)])).max(initial=0.0))
    degrees = a + n - 2 + max(0, len(draws.other_seeds) - 1)
    if n == 0 or a == 0 or degrees < 1 or scale == 0.0:
        return 0.0
    sum_N = np.cumsum(all_M)[a - 1 : -1]  # of all before each night
    before_N, after_N = a + np.arange(n), n - np.arange(n)
    rest_N = all_M.sum() - sum_N
    squares_N = np.square(all_M).sum() - sum_N**2 / before_N - rest_N**2 / after_N + _squares(draws.other_seeds)
    variance_N = np.maximum(squares_N / degrees, (TINY * scale) ** 2)
    rise_N, pairs_N = rest_N / after_N - sum_N / before_N, before_N * after_N / (before_N + after_N)
    square_N = rise_N**2 * pairs_N / variance_N  # Student's t, squared
    null_N = draws.error**2 * draws.moved / variance_N  # variance of what looks like a rise

    def log_ratio(variance_N: Array | float) -> Array:
        widened_N = 1.0 + pairs_N * variance_N
        power_N = np.log1p(square_N / degrees) - np.log1p(square_N / (degrees * widened_N))
        return np.asarray((degrees + 1) / 2 * power_N - np.log(widened_N) / 2)

    ratio_N = np.mean([np.exp(np.minimum(log_ratio(null_N + g) - log_ratio(null_N), 600.0)) for g in SCALES], axis=0)
    return float(min(MOST, (weight_N * ratio_N)[rise_N > 0.0].sum()))


def nights_needed(draws: Draws, gain: float, weight: float, needed: float) -> int | None:
    """Return after how many nights of a new recipe a gain would be shown, if they spread as usual; None: not in a year.

    ``gain``: over the mean of ``draws.before_A``; ``weight``: of the recipe's first night.
    """
    value, spread = float(np.mean(draws.before_A)) + gain, draws.spread

    def shown(nights: int) -> bool:
        around = [value + spread * (-1) ** night for night in range(nights - nights % 2)] + [value] * (nights % 2)
        weights_N = (weight, *[0.0] * (nights - 1))
        return evidence(replace(draws, nights_N=tuple(around), weights_N=weights_N)) >= needed

    return next(filter(shown, FORECAST), None)


def _squares(values: Sequence[float]) -> float:
    return float(np.square(np.asarray(values) - np.mean(values)).sum()) if len(values) > 1 else 0.0
