"""The kernel distance: a worked example, no bias, and independent of the block size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remint.evaluation import kernel
from remint.evaluation.evaluate import measure
from tests.support.evaluation_cases import Sampler, constant_draw, context_of, make_table, normal_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_distance_of_two_pairs_equals_a_worked_example() -> None:
    """k(0, 1) = 1, k(1, 2) = 27, and the mean between the pairs is (1 + 1 + 8 + 27) / 4: 1 + 27 - 2 * 9.25."""
    a, b = np.array([[0.0], [1.0]], dtype=np.float32), np.array([[1.0], [2.0]], dtype=np.float32)
    measured, _ = measure(Sampler(constant_draw(a), 1), ["kid_domain"], context_of(make_table(b, b)), "test")
    assert measured["kid_domain"].values_N.tolist() == [9.5, 9.5]


def test_the_distance_equals_the_definition_for_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (torch.from_numpy(normal_rows(n, 5, n).astype(np.float64)) for n in (23, 31))
    k_AA, k_AB = ((x @ y.T / 5 + 1) ** 3 for x, y in ((a, a), (a, b)))
    among = float(k_AA[~torch.eye(23, dtype=torch.bool)].mean())
    for block in (2048, 4):
        monkeypatch.setattr(kernel, "BLOCK", block)
        assert kernel.within_mean(a) == pytest.approx(among, rel=1e-12)
        assert kernel.cross_mean(a, b) == pytest.approx(float(k_AB.mean()), rel=1e-12)


def test_the_mean_distance_is_zero_for_equal_distributions_and_positive_for_others() -> None:
    """2,000 pairs of sets of 20 show no bias. The biased estimate is about 30 standard errors higher."""
    generator = torch.Generator().manual_seed(0)

    def sets() -> torch.Tensor:
        return torch.randn(20, 3, generator=generator, dtype=torch.float64)

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return kernel.within_mean(a) + kernel.within_mean(b) - 2.0 * kernel.cross_mean(a, b)

    equal = np.array([distance(sets(), sets()) for _ in range(2000)])
    error = equal.std(ddof=1) / 2000**0.5
    assert abs(equal.mean()) < 3.0 * error and (equal < 0).mean() > 0.3
    biased = np.mean([kernel.cross_mean(a, a) - kernel.within_mean(a) for a in (sets() for _ in range(200))])
    assert 2.0 * biased > 10.0 * error, "what leaving out the pairs of one with itself takes away would be seen"
    shifted = np.array([distance(sets() + 0.5, sets()) for _ in range(200)])
    assert shifted.mean() > 10.0 * shifted.std(ddof=1) / 200**0.5
