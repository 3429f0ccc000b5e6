"""Anomaly scores of every family: a function of the example alone, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remint.models.scores import Scorer
from remint.serving.anomalies.calibration import fit_reference, part_scores
from tests.support.calibrated_cases import split_of
from tests.support.models_cases import CASES, Case

EXPECTED = {
    "flow": {"likelihood", "relative", "typicality", "latent", "neighbours", "samples", "combined"},
    "flow_matching": {"likelihood", "relative", "typicality", "latent", "neighbours", "samples", "combined"},
    "vae": {"likelihood", "relative", "typicality", "reconstruction", "latent", "neighbours", "samples", "combined"},
    "vaegan": {"likelihood", "relative", "typicality", "reconstruction", "latent", "neighbours", "samples", "combined"},
    "pixelcnn": {"likelihood", "relative", "typicality", "neighbours", "samples", "combined"},
    "gan": {"neighbours", "samples", "combined"},
}


def scorer_of(case: Case, dtype: torch.dtype) -> Scorer:
    """Return the scores in this precision. Samples are drawn in single precision, as a served model does."""
    reference = fit_reference(case.build().float(), case.spec, split_of(case, 90, 1), split_of(case, 30, 2))
    return Scorer(case.build().to(dtype), case.spec, reference)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_a_score_depends_on_its_example_alone(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[name]
    scorer, x = scorer_of(case, dtype), split_of(case, 70, 3).x_NX
    assert set(scorer.names) == EXPECTED[case.family]
    together = part_scores(scorer, x)
    order = np.random.default_rng(0).permutation(len(x))
    for take in (order, np.arange(1), np.arange(5, 12)):
        for name_of_score, found in part_scores(scorer, x[take]).items():
            expected = together[name_of_score][take]
            assert bool(expected.isfinite().all())
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_far_examples_have_a_larger_distance_to_their_neighbours(name: str) -> None:
    case = CASES[name]
    scorer, x = scorer_of(case, torch.float64), split_of(case, 90, 1).x_NX
    near = part_scores(scorer, x)["neighbours"]
    far = x.copy()
    numeric = [place for place, column in enumerate(case.spec.columns) if column.numeric]
    if case.spec.is_table:
        far[:, numeric] += 100.0
    else:
        far = np.where(np.arange(x[0].size).reshape(x.shape[1:]) % 2, case.spec.levels - 1, 0).astype(np.uint8)[None]
    further = part_scores(scorer, far)["neighbours"]
    assert float(further.median()) > float(near.median())
