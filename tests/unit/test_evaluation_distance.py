"""Frechet distances of samples: the interval includes the choice of held-out examples, and extrapolation removes the bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remint.errors import DataError
from remint.evaluation import distance, intervals
from remint.evaluation.evaluate import measure
from remint.evaluation.frechet import Moments, frechet_distance
from tests.support.evaluation_cases import IdentityExtractor, Sampler, context_of, make_table, normal_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def test_moments_without_one_group_equal_those_of_the_rest() -> None:
    f_ND = normal_rows(200, 5, 0).astype(np.float64) + 100.0
    left, direct = Moments.of(f_ND) - Moments.of(f_ND[3::20]), Moments.of(np.delete(f_ND, np.s_[3::20], axis=0))
    assert left.count == direct.count == 190
    torch.testing.assert_close(left.mean_D, direct.mean_D, rtol=1e-13, atol=0)
    torch.testing.assert_close(left.scatter_DD, direct.scatter_DD, rtol=0, atol=1e-9)


def test_only_the_jackknife_interval_covers_the_choice_of_held_out_examples() -> None:
    """200 held-out sets with 8 draws each, compared with the mean distance over all of them."""
    generator = np.random.default_rng(0)

    def cloud(shift: float = 0.0) -> np.ndarray:
        return generator.normal(size=(100, 4)) + shift

    means, with_it, without = [], [], []
    for _ in range(200):
        real_ND = cloud()
        real, drawn = Moments.of(real_ND), [Moments.of(cloud(0.35)) for _ in range(8)]
        values_M = np.array([frechet_distance(one, real) for one in drawn])
        merged = drawn[0]
        for one in drawn[1:]:
            merged = merged + one
        left = [frechet_distance(merged, real - Moments.of(real_ND[group::20])) for group in range(20)]
        means.append(values_M.mean())
        with_it.append(intervals.over_draws(values_M, intervals.pseudo_values(left)))
        without.append(intervals.over_draws(values_M))
    truth = float(np.mean(means))

    def covered(limits: list[tuple[float, float]]) -> float:
        return float(np.mean([low <= truth <= high for low, high in limits]))

    assert 0.91 < covered(with_it) <= 0.99  # 95% within three standard deviations of 200 trials
    assert covered(without) < 0.7


def test_jackknife_deviations_follow_the_definition() -> None:
    """Compare with an explicit jackknife: leave out each group, and measure the merged draws against the rest."""
    dataset = make_table(normal_rows(100, 3, 0), normal_rows(60, 3, 1))
    context, model = context_of(dataset, draws=3), Sampler(lambda z: 1.1 * z, 3)
    found = measure(model, ["fd_domain"], context, "test")[0]["fd_domain"]
    f_ND = distance._shuffled(context.real("domain"), 0)
    merged = Moments.of(np.concatenate([context.drawn("domain", model, draw) for draw in range(3)]))
    left = np.array([frechet_distance(merged, Moments.of(np.delete(f_ND, np.s_[g::20], axis=0))) for g in range(20)])
    pseudo_J = 20 * 0.0 - 19 * left
    assert found.reference_J is not None
    np.testing.assert_allclose(found.reference_J, pseudo_J - pseudo_J.mean(), rtol=0, atol=1e-10)
    assert found.reference_J.sum() == pytest.approx(0.0, abs=1e-10) and "jackknife" in found.fingerprint["interval"]
    low, high = intervals.over_draws(found.values_N)
    assert found.low < low < high < found.high


def test_the_extrapolated_distance_is_nearer_to_that_of_the_distributions() -> None:
    """N(0, I) against N(m, s I) in 20 dimensions: |m|^2 + 20 (1 - s^1/2)^2, to which 250 examples add their bias."""
    dataset = make_table(normal_rows(300, 20, 0), normal_rows(250, 20, 1))
    model = Sampler(lambda z: 0.1 + 1.2**0.5 * z, 20)
    truth = 20 * 0.1**2 + 20 * (1 - 1.2**0.5) ** 2
    measured, _ = measure(model, ["fd_domain", "fd_infinity_domain"], context_of(dataset, draws=8), "test")
    plain, without_end = (measured[name].values_N.mean() for name in ("fd_domain", "fd_infinity_domain"))
    assert plain > 2.5 * truth
    assert abs(without_end - truth) < 0.35 * (plain - truth)
    found = measured["fd_infinity_domain"]
    assert found.low < truth < found.high and found.fingerprint["sizes"][-1] == 250 and found.reference_J is not None


def test_the_extrapolation_is_exact_for_values_linear_in_one_over_size() -> None:
    sizes = [50, 60, 80, 100]
    assert distance._intercept_weights(sizes) @ np.array([3.0 + 7.0 / size for size in sizes]) == pytest.approx(3.0, rel=1e-12)
    assert distance._intercept_weights([77]).tolist() == [1.0]


def test_metrics_share_samples_and_features() -> None:
    """Seven metrics use three draws of 100 samples and one reference of 100; the floor uses 3 draws of training examples."""
    extractor, model = IdentityExtractor(), Sampler(lambda z: 1.1 * z, 2)
    context = context_of(make_table(normal_rows(100, 2, 0), normal_rows(100, 2, 1)), extractor, draws=3)
    metrics = ["kid_domain", "precision_domain", "recall_domain", "coverage_domain", "fd_infinity_domain", "novelty"]
    measure(model, metrics, context, "test")
    assert model.calls == 3 and extractor.seen.count(100) == len(extractor.seen)
    assert len(extractor.seen) == 1 + 3
    measure(model, [*metrics, "fd_domain"], context, "test")
    assert model.calls == 6, "a second measurement has draws of its own"
    assert len(extractor.seen) == 2 * (1 + 3) + 3, "and the floor's"


def test_metrics_of_samples_do_not_read_features() -> None:
    """Each metric alone, and all of them in both orders, with features that are ten times the columns."""

    class Tenfold(IdentityExtractor):
        def __call__(self, x_NX: np.ndarray) -> np.ndarray:
            return 10.0 * super().__call__(x_NX)

    metrics = ["fd_domain", "kid_domain", "recall_domain", "novelty"]

    def found(*asked: str) -> dict[str, list[float]]:
        context = context_of(make_table(normal_rows(100, 2, 0), normal_rows(90, 2, 1)), Tenfold())
        measured, _ = measure(Sampler(lambda z: 1.1 * z, 2), list(asked), context, "test")
        return {name: measured[name].values_N.tolist() for name in asked}

    alone = {name: found(name)[name] for name in metrics}
    assert found(*metrics) == alone and found(*reversed(metrics)) == alone


def test_too_few_examples_for_nested_subsets_are_refused() -> None:
    x_ND = normal_rows(79, 2, 0)
    with pytest.raises(DataError, match="fd_infinity_domain needs 80 examples on each side, but only 79 are available"):
        measure(Sampler(torch.clone, 2), ["fd_infinity_domain"], context_of(make_table(x_ND, x_ND)), "test")
