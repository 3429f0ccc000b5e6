"""Intervals: they have the theoretical width and the stated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from remint.evaluation import intervals
from remint.records import MetricValue, digest


def test_the_interval_of_three_draws_equals_a_worked_example() -> None:
    half = 4.302652729911275 / 3**0.5  # the 97.5% point of t with 2 degrees of freedom, standard deviation 1
    assert intervals.over_draws(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0 - half, 2.0 + half))


def test_the_interval_over_draws_covers_the_mean_95_times_in_100() -> None:
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(2000, 20))
    covered = [low <= 5.0 <= high for low, high in map(intervals.over_draws, draws)]
    assert 0.935 < np.mean(covered) < 0.965  # three standard deviations of 2,000 trials


def test_jackknife_deviations_of_a_mean_are_the_group_means() -> None:
    """For four groups of equal size, the pseudo-values of the mean are the group means."""
    groups = np.random.default_rng(4).normal(size=(4, 25))
    without = [np.delete(groups, j, axis=0).mean() for j in range(4)]
    np.testing.assert_allclose(intervals.pseudo_values(without), groups.mean(axis=1) - groups.mean(), rtol=0, atol=1e-14)


def test_draws_and_reference_add_in_quadrature() -> None:
    draws, reference = np.array([1.0, 2.0, 3.0]), np.array([-1.5, 0.0, 1.5])
    half = 4.302652729911275 / 3**0.5 * (1.0 + 1.5**2) ** 0.5
    assert intervals.over_draws(draws, reference) == pytest.approx((2.0 - half, 2.0 + half))
    assert intervals.over_draws(draws, np.zeros(3)) == intervals.over_draws(draws)


def test_the_interval_over_examples_covers_the_mean_95_times_in_100() -> None:
    values = np.random.default_rng(1).gumbel(size=(300, 200))
    covered = [low <= np.euler_gamma <= high for low, high in (intervals.over_examples(v, 0) for v in values)]
    assert 0.90 < np.mean(covered) < 0.985


def test_the_interval_over_examples_has_the_width_of_the_central_limit() -> None:
    values = np.random.default_rng(2).normal(size=4000)
    low, high = intervals.over_examples(values, 0)
    error = values.std(ddof=1) / 4000**0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_the_result_depends_on_the_seed_and_not_on_the_memory_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    whole = intervals.over_examples(values, 7)
    assert whole == intervals.over_examples(values, 7) != intervals.over_examples(values, 8)
    monkeypatch.setattr(intervals, "BLOCK", 1234)
    assert intervals.over_examples(values, 7) == whole


def test_equal_values_have_an_interval_of_width_zero() -> None:
    assert intervals.over_examples(np.full(9, 2.5), 0) == intervals.over_draws(np.full(9, 2.5)) == (2.5, 2.5)


def test_a_value_from_before_keeps_its_digest() -> None:
    before = {"name": "elbo", "value": 2.0, "low": 1.5, "high": 2.5, "n": 9, "seed": 0, "unit": "nats", "better": "lower"}
    before["fingerprint"] = {"importance_samples": 500}
    read = MetricValue.model_validate(before)
    assert read.digest == digest(before) and read.repeats == 0
    chosen = read.model_copy(update={"repeats": 4})
    assert MetricValue.model_validate(chosen.to_json()) == chosen and chosen.digest != read.digest
