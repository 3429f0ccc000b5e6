"""Metrics from nearest neighbours, against explicit definitions and models with known defects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.data.arrays import Dataset
from remint.errors import DataError, RunError
from remint.evaluation import neighbours, pairs
from remint.evaluation.context import EvaluationContext
from remint.evaluation.evaluate import measure
from remint.records import Column
from tests.support.evaluation_cases import Array, IdentityExtractor, Sampler, constant_draw, context_of, make_table, normal_rows

pytestmark = pytest.mark.usefixtures("one_thread")

K = neighbours.NEIGHBOURS
OF_SAMPLES = ["precision_domain", "recall_domain", "density_domain", "coverage_domain"]


def values(model: object, context: EvaluationContext, *metrics: str) -> dict[str, float]:
    measured, _ = measure(model, list(metrics), context, "test")
    return {name: float(measured[name].values_N.mean()) for name in metrics}


def in_balls(point: Array, centres: Array) -> list[bool]:
    """Return whether a point is in the ball of each centre up to its K-th neighbour. Whole numbers make ties exact."""
    inside = []
    for i, centre in enumerate(centres):
        others = sorted(int(((centre - other) ** 2).sum()) for j, other in enumerate(centres) if j != i)
        inside.append(int(((point - centre) ** 2).sum()) <= others[K - 1])
    return inside


@pytest.mark.parametrize("far", [0.0, 3.0])
def test_the_four_metrics_equal_the_definitions_of_their_papers(far: float) -> None:
    """On a lattice with many equal distances and duplicate points, and far from the origin, where digits are lost."""
    generator = np.random.default_rng(0)
    real, drawn = (generator.integers(-4, 5, size=(40, 2)) + shift for shift in (0, 4))
    y_N = np.arange(40) % 3
    in_real = np.array([in_balls(point, real) for point in drawn])
    in_drawn = np.array([in_balls(point, drawn) for point in real])

    class Lattice(IdentityExtractor):
        def __call__(self, x_NX: Array) -> Array:
            return super().__call__(x_NX) * 0.1 + 10.0**far

    context = context_of(make_table(real, real, y_N), Lattice())
    measured, _ = measure(Sampler(constant_draw(drawn.astype(np.float32)), 2), OF_SAMPLES, context, "test")
    found = {name: measured[name].values_N[0] for name in OF_SAMPLES}
    assert found == pytest.approx(
        {
            "precision_domain": in_real.any(axis=1).mean(),
            "recall_domain": in_drawn.any(axis=1).mean(),
            "density_domain": in_real.sum() / (K * 40),
            "coverage_domain": in_real.any(axis=0).mean(),
        },
        abs=1e-12,
    )
    assert all(0.1 < value < 0.9 for value in found.values()), "none is at an end, where it would be right by luck"
    by_class = measured["coverage_domain"].by_class
    assert {y: one.values_N[0] for y, one in by_class.items()} == pytest.approx(
        {y: in_real.any(axis=0)[y_N == y].mean() for y in range(3)}
    )
    assert [one.n for one in by_class.values()] == [14, 13, 13]
    assert not measured["precision_domain"].by_class


def test_a_collapsed_model_has_high_precision_and_low_recall_and_a_noisy_one_the_opposite() -> None:
    """The real data have two clusters, so that precision and recall, or density and coverage, cannot be confused."""
    side = np.sign(np.arange(300) % 2 - 0.5)
    y_N = (side > 0).astype(np.int64)

    def real(seed: int) -> Array:
        return normal_rows(300, 4, seed) + 4.0 * side[:, None].astype(np.float32)

    context = context_of(make_table(real(1), real(0), y_N))
    measured, _ = measure(Sampler(lambda z: 0.3 * z + 4.0, 4), OF_SAMPLES, context, "test")
    collapsed = {name: float(one.values_N.mean()) for name, one in measured.items() if name in OF_SAMPLES}
    noisy = values(Sampler(lambda z: 7.0 * z, 4), context, *OF_SAMPLES)
    good = values(Sampler(lambda z: z + 4.0 * torch.sign(torch.arange(len(z))[:, None] % 2 - 0.5), 4), context, *OF_SAMPLES)
    assert collapsed["precision_domain"] > 0.95 > 0.2 > collapsed["recall_domain"]
    assert collapsed["density_domain"] > 0.95 > 0.4 > collapsed["coverage_domain"]
    assert noisy["recall_domain"] > 0.9 > 0.4 > noisy["precision_domain"]
    assert noisy["density_domain"] < 0.2 and noisy["coverage_domain"] < 0.5
    assert min(good.values()) > 0.85
    by_class = {y: one.values_N.mean() for y, one in measured["coverage_domain"].by_class.items()}
    assert by_class[0] == 0.0 < 0.3 < by_class[1], "it never draws the first class"


def test_the_result_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = normal_rows(60, 3, 0), normal_rows(70, 3, 1)
    model, metrics = Sampler(lambda z: 1.2 * z, 3), [*OF_SAMPLES, "novelty"]
    whole = values(model, context_of(make_table(other, real)), *metrics)
    monkeypatch.setattr(pairs, "BLOCK", 7)
    assert values(model, context_of(make_table(other, real)), *metrics) == pytest.approx(whole, rel=1e-12)


def test_the_novelty_of_training_examples_is_zero(digits: Dataset) -> None:
    images = torch.from_numpy(np.array(digits.train.x_NX))

    class Memory(Sampler):
        def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            return images[(torch.special.ndtr(noise_BN[:, 0]) * len(images)).long()]

    context = EvaluationContext(digits, {}, context_of(digits).settings)
    assert values(Memory(torch.clone, 1), context, "novelty") == {"novelty": 0.0}


def test_novelty_is_the_ratio_of_distances_to_the_nearest_training_example() -> None:
    """Each pair is computed explicitly, from numbers, a missing number and categories."""
    columns = (
        Column(name="length", missing=True),
        Column(name="colour", categories=("red", "green", "blue")),
        Column(name="mass"),
    )

    def squared(a: Array, b: Array) -> float:
        numbers = sum((np.nan_to_num(float(a[d])) - np.nan_to_num(float(b[d]))) ** 2 for d in (0, 2))
        return float(numbers + (np.isnan(a[0]) != np.isnan(b[0])) + 2.0 * (a[1] != b[1]))

    def to_nearest(x: Array) -> float:
        return float(np.mean([min(math.sqrt(squared(a, b)) for b in train) for a in x]))

    def table(seed: int, miss: bool) -> Array:
        x = normal_rows(30, 3, seed)
        x[:, 1] = np.arange(30) * 7 % 3
        if miss:
            x[::4, 0] = np.nan
        return x

    train, held_out, drawn = table(0, True), table(1, True), table(2, False)
    found = values(Sampler(constant_draw(drawn), 3), context_of(make_table(train, held_out, columns=columns)), "novelty")
    assert found["novelty"] == pytest.approx(to_nearest(drawn) / to_nearest(held_out), rel=1e-12)
    copies = values(
        Sampler(constant_draw(train[np.isfinite(train[:, 0])]), 3),
        context_of(make_table(train, held_out, columns=columns), samples=20),
        "novelty",
    )
    assert copies == {"novelty": 0.0}


def test_novelty_is_about_one_for_the_same_distribution_and_higher_for_noise() -> None:
    context = context_of(make_table(normal_rows(400, 3, 0), normal_rows(300, 3, 1)), draws=4)
    same, noise = (values(Sampler(lambda z, s=scale: s * z, 3), context, "novelty")["novelty"] for scale in (1.0, 4.0))
    assert same == pytest.approx(1.0, abs=0.15) and noise > 2.0


def test_novelty_is_refused_if_all_held_out_examples_are_copies() -> None:
    x = normal_rows(20, 2, 0)
    with pytest.raises(DataError, match="every held-out example of rows is also in its training split"):
        values(Sampler(torch.clone, 2), context_of(make_table(x, x)), "novelty")


@pytest.mark.parametrize("metric", ["fd_domain", "kid_domain", "precision_domain", "recall_domain"])
def test_nonfinite_features_are_counted_and_never_dropped(metric: str) -> None:
    class Broken(IdentityExtractor):
        def __call__(self, x_NX: Array) -> Array:
            f_ND = super().__call__(x_NX)
            f_ND[(f_ND > 50.0).any(axis=1), 0] = np.nan
            return f_ND

    def far(z: Tensor) -> Tensor:
        return torch.where(torch.arange(len(z))[:, None] < 3, 100.0, z)

    context = context_of(make_table(normal_rows(90, 2, 0), normal_rows(90, 2, 1)), Broken())
    with pytest.raises(RunError, match="features 'domain' of 3 of 90 samples are not finite"):
        values(Sampler(far, 2), context, metric)


@pytest.mark.parametrize(("metric", "least"), [("precision_domain", 6), ("recall_domain", 6), ("kid_domain", 2), ("novelty", 2)])
def test_too_few_examples_are_refused(metric: str, least: int) -> None:
    x: Any = normal_rows(30, 2, 0)
    with pytest.raises(DataError, match=f"{metric} needs {least} examples on each side, but only {least - 1} are available"):
        values(Sampler(torch.clone, 2), context_of(make_table(x, x), samples=least - 1), metric)
