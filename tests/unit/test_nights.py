"""Evidence of many nights: the likelihood ratio, its promise over all nights, and what it does not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from remint.evaluation.levels import share
from remint.promotion.nights import MOST, SCALES, Draws, evidence, nights_needed

LEVEL = 0.05


def ratio(before: np.ndarray, after: np.ndarray, scale: float) -> float:
    """Integrate the density of Student's t over rises d ~ N(0, scale), and divide by that without a rise."""
    a, b = before.size, after.size
    t = float(stats.ttest_ind(after, before).statistic)
    pairs, degrees = a * b / (a + b), a + b - 2

    def weighed(rise: float) -> float:
        return float(stats.nct.pdf(t, degrees, rise * np.sqrt(pairs)) * stats.norm.pdf(rise, scale=np.sqrt(scale)))

    found = integrate.quad(weighed, -40.0, 40.0, points=[0.0, t / np.sqrt(pairs)], limit=400)[0]
    return float(found / stats.t.pdf(t, degrees))


def test_one_start_is_the_likelihood_ratio_of_student_s_t() -> None:
    dice = np.random.default_rng(0)
    before, after = np.r_[0.0, dice.normal(size=5)], 1.5 + dice.normal(size=4)
    told = evidence(Draws(tuple(before), tuple(after), (0.25, 0.0, 0.0, 0.0)))
    wide = replace_scale(before, after, SCALES[1])
    assert told == pytest.approx(0.25 * (ratio(before, after, SCALES[0]) + wide) / 2, rel=1e-6)


def replace_scale(before: np.ndarray, after: np.ndarray, scale: float) -> float:
    """Return the ratio in its closed form, which ``ratio`` checks at the scale that quadrature reaches."""
    a, b = before.size, after.size
    t = float(stats.ttest_ind(after, before).statistic)
    widened, degrees = 1.0 + scale * a * b / (a + b), a + b - 2
    return float(widened**-0.5 * ((1 + t * t / degrees) / (1 + t * t / (degrees * widened))) ** ((degrees + 1) / 2))


def test_equal_nights_pass_any_bound_at_most_at_its_level() -> None:
    """The promise of an e-process, over all nights together. At most the binomial's 99.7% point of all years may pass."""
    dice, nights, years = np.random.default_rng(1), 30, 200
    weights = tuple(share(number) for number in range(1, nights + 1))
    most = []
    for _ in range(years):
        draws = dice.normal(size=nights + 3)
        before, gains = (0.0, *(draws[0] - draws[1:3])), draws[0] - draws[3:]
        most.append(max(evidence(Draws(before, tuple(gains[:n]), weights[:n])) for n in range(1, nights + 1)))
    for level in (0.5, 0.2, 0.05):
        passed = sum(value >= 1 / level for value in most)
        assert passed <= stats.binom.ppf(0.997, years, level), (level, passed)


@pytest.mark.parametrize("start", [0, 40])
def test_a_gain_of_four_spreads_is_shown_within_seven_nights(start: int) -> None:
    dice = np.random.default_rng(2)
    weights = tuple(share(number) / 2 for number in range(1, start + 8))
    found = 0
    for _ in range(100):
        own = dice.normal(size=5 + start + 7)
        own[5 + start :] -= 4.0
        gains = own[0] - own
        marked = (*weights[:start], weights[start] + 0.5 * share(1), *weights[start + 1 :])
        found += any(
            evidence(Draws((0.0, *gains[1:5]), tuple(gains[5 : 5 + n]), marked[:n])) >= 1 / LEVEL
            for n in range(start + 1, start + 8)
        )
    assert found >= 90, found


def test_units_and_order_within_a_group_do_not_matter() -> None:
    dice = np.random.default_rng(3)
    before, after = tuple(dice.normal(size=4)), tuple(2.0 + dice.normal(size=3))
    one = Draws(before, after, (0.5, 0.0, 0.0), error=0.2, moved=0.3, other_seeds=(5.0, 6.0, 5.5))
    times = Draws(
        *(tuple(1e-3 * value for value in group) for group in (before, after)),
        one.weights_N,
        error=0.2e-3,
        moved=0.3,
        other_seeds=(5.0e-3, 6.0e-3, 5.5e-3),
    )
    turned = replace(one, before_A=before[::-1], nights_N=after[::-1])
    assert evidence(one) == pytest.approx(evidence(times)) == pytest.approx(evidence(turned))
    assert evidence(one) > 0.0


def test_other_examples_make_a_rise_less_certain() -> None:
    draws = Draws((0.0, 0.1, -0.1), (0.5, 0.6, 0.55), (0.5, 0.0, 0.0), error=0.3)
    moved = [evidence(replace(draws, moved=share)) for share in (0.0, 0.2, 1.0)]
    assert moved[0] > moved[1] > moved[2] > 0.0


def test_too_few_draws_show_nothing_and_worse_nights_show_nothing() -> None:
    assert evidence(Draws((0.0,), (5.0,), (1.0,))) == 0.0
    assert evidence(Draws((0.0, 0.1, 0.2), (), ())) == 0.0
    assert evidence(Draws((0.0, 0.1, 0.2), (-9.0,), (1.0,))) == 0.0
    assert evidence(Draws((0.0,) * 9, (0.0,), (1.0,))) == 0.0
    assert evidence(Draws(tuple(np.linspace(0.0, 1e-9, 50)), (1.0,) * 50, (1.0,) * 50)) == MOST


def test_the_outlook_falls_with_the_gain_and_with_the_nights_that_are_known() -> None:
    dice = np.random.default_rng(4)
    few, many = (Draws((0.0, *dice.normal(size=count))) for count in (4, 60))
    told = [[nights_needed(each, gain * each.spread, 0.3, 20.0) or 999 for gain in (1, 2, 4, 30)] for each in (few, many)]
    assert all(row == sorted(row, reverse=True) for row in told)
    assert all(known <= new for new, known in zip(*told, strict=True)), told
    assert told[1][2] <= 3 and told[0][3] == 1
