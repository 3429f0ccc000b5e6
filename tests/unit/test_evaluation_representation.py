"""The linear probe against scikit-learn, and on models whose latents are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from remint.data.arrays import Dataset
from remint.evaluation import representation
from remint.evaluation.context import EvaluationContext
from remint.evaluation.evaluate import measure
from remint.evaluation.representation import NAMES, can_probe, predict, principal_components, probes
from remint.models.contract import Model
from remint.settings.judging import EvaluationSettings

pytestmark = pytest.mark.usefixtures("one_thread")


class Known(Model):
    """A model whose latents are the first ``size`` pixels, moved and stretched; with as many zeros as pixels if ``blind``."""

    def __init__(self, size: int, blind: bool = False) -> None:
        super().__init__()
        self.latent_size, self.blind, self.unused = size, blind, nn.Linear(1, 1)

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        z_BZ = 3.0 * x_BX.flatten(1)[:, : self.latent_size].float() - 7.0
        return 0.0 * z_BZ if self.blind else z_BZ

    def decode(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def context(digits: Dataset) -> EvaluationContext:
    return EvaluationContext(digits, {}, EvaluationSettings())


def test_the_probe_predicts_as_logistic_regression_of_scikit_learn(digits: Dataset) -> None:
    x_ND, y_N = np.array(digits.train.x_NX[:300]).reshape(300, -1).astype(float), np.array(digits.train.y_N[:300])
    test_MD = np.array(digits.held_out.x_NX).reshape(-1, 64).astype(float)
    scaler = StandardScaler().fit(x_ND)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(scaler.transform(x_ND), y_N)
    expected_M = reference.predict(scaler.transform(test_MD))
    found_M = predict(torch.tensor(x_ND), torch.tensor(y_N), torch.tensor(test_MD), 10).numpy()
    assert (found_M != expected_M).mean() < 0.01


def test_the_components_are_those_of_scikit_learn(digits: Dataset) -> None:
    x_ND, test_MD = (np.array(split.x_NX[:100]).reshape(100, -1).astype(float) for split in (digits.train, digits.held_out))
    reference = PCA(5, svd_solver="full").fit(x_ND)
    for found, expected in zip(principal_components(torch.tensor(x_ND), torch.tensor(test_MD), 5), (x_ND, test_MD), strict=True):
        np.testing.assert_allclose(np.abs(found.numpy()), np.abs(reference.transform(expected)), atol=1e-8)


def test_latents_that_are_the_values_have_the_accuracy_of_the_values(context: EvaluationContext) -> None:
    found = probes(Known(64), context)
    np.testing.assert_array_equal(found["probe_latent"].values_N, found["probe_raw"].values_N)
    assert found["probe_raw"].values_N.mean() > 0.9
    assert set(np.unique(found["probe_raw"].values_N)) == {0.0, 1.0}
    assert found["probe_raw"].n == len(context.judged)
    assert [found[name].fingerprint["numbers"] for name in NAMES] == [64, 64, 64]
    blind = probes(Known(5, blind=True), context)
    assert blind["probe_latent"].values_N.mean() < 0.2 < 0.5 < blind["probe_pca"].values_N.mean()
    assert [blind[name].fingerprint["numbers"] for name in NAMES] == [5, 5, 64]
    np.testing.assert_array_equal(blind["probe_raw"].values_N, found["probe_raw"].values_N)


def test_the_numbers_of_examples_are_limited(context: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representation, "TRAINED", 200)
    monkeypatch.setattr(representation, "TESTED", 50)
    found = probes(Known(8), context)["probe_latent"]
    assert (found.n, found.fingerprint["trained_on"]) == (50, 200)


def test_a_report_has_the_probe_where_there_are_latents_and_labels(context: EvaluationContext, digits: Dataset) -> None:
    baselines = measure(Known(4), [], context, "known")[1]
    assert set(baselines) == set(NAMES)
    assert all(value.better == "higher" and value.low <= value.value <= value.high for value in baselines.values())
    unlabelled = replace(digits, train=replace(digits.train, y_N=None))
    assert not can_probe(Known(4), EvaluationContext(unlabelled, {}, EvaluationSettings()))
    for key in ("conditional", "encodes_by_search"):
        model = Known(4)
        setattr(model, key, True)
        assert not can_probe(model, context)
    assert not can_probe(nn.Linear(1, 1), context)
