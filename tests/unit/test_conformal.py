"""Conformal p-values: exactly uniform for exchangeable scores, with and without ties; Benjamini-Hochberg by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from remint.serving.anomalies.conformal import benjamini_hochberg, fewest_flagged, p_values


@pytest.mark.parametrize("scores", [(1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 1.0, 2.0, 2.0, 2.0), (0.0,) * 5])
def test_p_values_of_exchangeable_scores_are_uniform(scores: tuple[float, ...]) -> None:
    """Each score in turn is the new one, and the others calibrate; each tie takes every place with equal weight."""
    weight: dict[Fraction, Fraction] = {}
    for new in range(len(scores)):
        others = np.delete(np.array(scores), new)
        places = int((others == scores[new]).sum()) + 1
        for place in range(places):
            (p,) = p_values(others, np.array([scores[new]]), np.array([(place + 0.5) / places]))
            key = Fraction(float(p)).limit_denominator(100)
            weight[key] = weight.get(key, Fraction(0)) + Fraction(1, len(scores) * places)
    assert weight == {Fraction(k, 5): Fraction(1, 5) for k in range(1, 6)}


def test_the_smallest_p_value_is_one_over_n_plus_one() -> None:
    calibration = np.arange(99.0)
    p = p_values(calibration, np.array([1e9, -1e9, 98.0]), np.array([0.999, 0.0, 0.0]))
    assert p.tolist() == [0.01, 1.0, 0.01]


def test_benjamini_hochberg_is_the_step_up_rule() -> None:
    rng = np.random.default_rng(0)
    for size, fdr in itertools.product((1, 2, 7, 20), (0.05, 0.2, 0.5)):
        for _ in range(20):
            p = rng.integers(1, 30, size) / 29
            largest = max((k for k in range(1, size + 1) if sorted(p)[k - 1] <= fdr * k / size), default=0)
            expected = p <= sorted(p)[largest - 1] if largest else np.zeros(size, bool)
            assert benjamini_hochberg(p, fdr).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("count", "calibrated", "fdr", "fewest"),
    [
        (1, 99, 0.1, 1),
        (10, 99, 0.1, 1),
        (11, 99, 0.1, 2),
        (1000, 99, 0.1, 100),
        (5, 8, 0.1, None),
        (5, 9, 0.1, 5),
        (3, 9, 1e-320, None),
    ],
)
def test_the_least_number_that_can_be_flagged(count: int, calibrated: int, fdr: float, fewest: int | None) -> None:
    assert fewest_flagged(count, calibrated, fdr) == fewest
    smallest = 1 / (calibrated + 1)
    for flagged in range(1, count + 1):
        p = np.r_[np.full(flagged, smallest), np.ones(count - flagged)]
        assert benjamini_hochberg(p, fdr).sum() == (flagged if fewest is not None and flagged >= fewest else 0)
