"""Frechet distance against closed forms, and the properties that every distance has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remint.evaluation import frechet
from remint.evaluation.frechet import Moments, frechet_distance


def gaussian(mean_D: np.ndarray, covariance_DD: np.ndarray, count: int = 1000) -> Moments:
    """Return the moments of a set with exactly this mean and covariance."""
    return Moments(count, torch.from_numpy(mean_D).double(), torch.from_numpy(covariance_DD * (count - 1)))


def rotation(dims: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dims, dims)))[0]


def test_diagonal_gaussians_have_their_closed_form() -> None:
    generator = np.random.default_rng(0)
    ma, mb = generator.normal(size=(2, 7))
    sa, sb = generator.uniform(0.1, 3.0, size=(2, 7))  # standard deviations
    expected = ((ma - mb) ** 2).sum() + ((sa - sb) ** 2).sum()
    found = frechet_distance(gaussian(ma, np.diag(sa**2)), gaussian(mb, np.diag(sb**2)))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [2, 64])
def test_commuting_gaussians_have_their_closed_form_over_ten_orders_of_magnitude(dims: int) -> None:
    turn = rotation(dims, 1)
    sa, sb = np.logspace(-5, 5, dims), np.logspace(2, -3, dims)
    expected = ((sa - sb) ** 2).sum()
    found = frechet_distance(gaussian(np.zeros(dims), turn * sa**2 @ turn.T), gaussian(np.zeros(dims), turn * sb**2 @ turn.T))
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_gaussians_that_do_not_commute_have_their_closed_form(seed: int) -> None:
    factors = np.random.default_rng(seed).normal(size=(2, 2, 2))
    sa, sb = (factor @ factor.T for factor in factors)
    # For 2 x 2 matrices tr (Sa Sb)^1/2 = (tr Sa Sb + 2 (det Sa det Sb)^1/2)^1/2.
    overlap = np.sqrt(np.trace(sa @ sb) + 2.0 * np.sqrt(np.linalg.det(sa) * np.linalg.det(sb)))
    expected = np.trace(sa) + np.trace(sb) - 2.0 * overlap
    assert frechet_distance(gaussian(np.zeros(2), sa), gaussian(np.zeros(2), sb)) == pytest.approx(expected, rel=1e-8)


def test_covariances_without_full_rank_have_their_closed_form() -> None:
    """On orthogonal lines the sets do not overlap; on one line the standard deviations are subtracted."""
    along_x, along_y = np.diag([4.0, 0.0, 0.0]), np.diag([0.0, 9.0, 0.0])
    zero = np.zeros(3)
    assert frechet_distance(gaussian(zero, along_x), gaussian(zero, along_y)) == pytest.approx(13.0, rel=1e-12)
    turn = rotation(3, 2)
    oblique = turn @ along_x @ turn.T
    assert frechet_distance(gaussian(zero, oblique), gaussian(zero, 2.25 * oblique)) == pytest.approx(1.0, rel=1e-10)
    assert frechet_distance(gaussian(zero, 0.0 * along_x), gaussian(zero, along_y)) == pytest.approx(9.0, rel=1e-12)
    assert frechet_distance(gaussian(zero, 0.0 * along_x), gaussian(zero + 2.0, 0.0 * along_x)) == pytest.approx(12.0)


def test_fewer_examples_than_features_give_an_accurate_distance() -> None:
    """A shift adds its square to the distance, nearly exactly, although the covariance has rank 9 of 50."""
    f_ND = np.random.default_rng(3).normal(size=(10, 50))
    shift_D = np.random.default_rng(4).normal(size=50)
    found = frechet_distance(Moments.of(f_ND), Moments.of(f_ND + shift_D))
    assert found == pytest.approx(float(shift_D @ shift_D), rel=1e-10)


def spectrum(kind: str, condition: float, dims: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return two covariances with smallest variances 1 / ``condition`` of the largest, and their distance in closed form."""
    turn = rotation(dims, 5)
    sa, sb = np.geomspace(1.0, condition**-0.5, (2 * dims)).reshape(dims, 2).T  # standard deviations
    if kind == "two levels":
        sa = np.where(np.arange(dims) < dims // 2, 1.0, condition**-0.5)
        sb = 1.5 * sa
    if kind == "opposed":
        sb = sb[::-1]
    return turn * sa**2 @ turn.T, turn * sb**2 @ turn.T, float(((sa - sb) ** 2).sum())


@pytest.mark.parametrize("kind", ["falling", "two levels", "opposed"])
@pytest.mark.parametrize(
    "condition", [pytest.param(10.0**n, marks=[] if n in (1, 4, 8, 12) else [pytest.mark.soak]) for n in range(1, 13)]
)
def test_the_fast_method_agrees_with_the_slow_one_where_it_is_used(kind: str, condition: float) -> None:
    """Down to variances of 1e-12, where the choice of method changes; 300 features need more than one block."""
    sa_DD, sb_DD, expected = spectrum(kind, condition, 300)
    zero_D = np.zeros(300)
    a, b = gaussian(zero_D, sa_DD), gaussian(zero_D, sb_DD)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    overlap, error = frechet._short_overlap(a.covariance_DD, b.covariance_DD)
    if error <= frechet.ACCURACY * expected:
        longer = frechet._long_overlap(a.covariance_DD, b.covariance_DD)
        assert 2.0 * abs(overlap - longer) <= max(error, 1e-13 * overlap)
    well, ill = (condition <= 1e2, kind == "two levels" and condition >= 1e10)
    assert (not well or error <= frechet.ACCURACY * expected) and (not ill or error > frechet.ACCURACY * expected)


@pytest.mark.parametrize(("count", "dims"), [(10, 50), (4, 4), (300, 300), (2, 1)])
def test_the_fast_method_is_used_only_with_full_rank(count: int, dims: int) -> None:
    """With as many examples as features the rank is one less; because of rounding, a Cholesky factorisation may not fail."""
    f_ND = np.random.default_rng(0).normal(size=(2, count, dims))
    sa_DD, sb_DD = (Moments.of(f).covariance_DD for f in f_ND)
    assert np.isinf(frechet._short_overlap(sa_DD, sb_DD)[1]) == (count <= dims)


def test_equal_sets_with_full_rank_have_distance_zero() -> None:
    """The slow method is used although the fast one would work: the fast one would be exact only up to rounding."""
    a = Moments.of(np.random.default_rng(0).normal(size=(500, 40)))
    assert 0.0 <= frechet_distance(a, a) <= 1e-13 * float(a.covariance_DD.trace())


sizes = st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_the_distance_is_symmetric_nonnegative_and_zero_for_equal_sets(size: tuple[int, int, int, int]) -> None:
    first, second, dims, seed = size
    generator = np.random.default_rng(seed)
    a, b = Moments.of(generator.normal(size=(first, dims))), Moments.of(3.0 * generator.normal(size=(second, dims)) + 1.0)
    scale = float(a.covariance_DD.trace() + b.covariance_DD.trace())
    assert 0.0 <= frechet_distance(a, a) <= 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9 * scale)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 10**6))
def test_the_result_does_not_depend_on_the_batch_size(batches: list[int], dims: int, seed: int) -> None:
    """Also far from the origin, where a sum of squares would lose all digits."""
    f_ND = 1e4 + np.random.default_rng(seed).normal(size=(sum(batches) + 1, dims))
    whole = Moments.of(f_ND)
    parts = np.split(f_ND, np.cumsum(batches))
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged + Moments.of(part)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean_D, whole.mean_D, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter_DD, whole.scatter_DD, rtol=1e-10, atol=1e-10 * float(whole.scatter_DD.max()))


def test_moments_equal_those_of_numpy() -> None:
    f_ND = np.random.default_rng(0).normal(size=(100, 6))
    np.testing.assert_allclose(Moments.of(f_ND).covariance_DD, np.cov(f_ND.T), rtol=1e-12)
