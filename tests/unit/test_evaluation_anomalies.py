"""Metrics of labelled anomalies: against scikit-learn and the normal distribution, in a step, and their errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score

from remint.errors import DataError
from remint.evaluation import anomalies
from remint.records import EvaluationReport
from remint.settings.params import validate_params
from remint.settings.steps import EvaluateStep, resolved
from tests.support.evaluation_cases import context_of, make_table, normal_rows
from tests.unit.test_evaluation_report import PARAMS, run_step, workspace

__all__ = ["workspace"]  # a fixture


@pytest.mark.parametrize("decimals", [0, 9])
def test_the_values_are_those_of_scikit_learn(decimals: int) -> None:
    """Also with many ties."""
    rng = np.random.default_rng(decimals)
    normal, other = rng.normal(0, 1, 60).round(decimals), rng.normal(1, 1, 25).round(decimals)
    y, score = np.repeat([0, 1], [60, 25]), np.concatenate([normal, other])
    above, below = anomalies.placements(normal, other)
    assert above.mean() == pytest.approx(roc_auc_score(y, score)) == pytest.approx(below.mean())
    assert anomalies.precisions(normal, other).mean() == pytest.approx(average_precision_score(y, score))


def test_the_interval_of_the_auroc_covers_the_true_value() -> None:
    """Normal scores N(0, 1), anomalies N(1, 1): the AUROC is Phi(1 / sqrt 2). 300 intervals of 95%, three deviations below."""
    rng, true, covered = np.random.default_rng(0), float(ndtr(0.5**0.5)), 0
    context = context_of(make_table(normal_rows(9, 2, 0), normal_rows(9, 2, 1)))
    for _ in range(300):
        scores = rng.normal(0, 1, 80), rng.normal(1, 1, 40)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anomalies, "RESAMPLES", 2)
            object.__setattr__(context, "anomaly_scores", lambda model, judged, scores=scores: scores)
            found = anomalies.measure(None, context)["anomaly_auroc"]
        covered += found.low <= true <= found.high
    assert covered >= 300 * 0.95 - 3 * (300 * 0.95 * 0.05) ** 0.5


def test_one_anomaly_is_too_few() -> None:
    context = context_of(make_table(normal_rows(9, 2, 0), normal_rows(9, 2, 1)))
    object.__setattr__(context, "anomaly_scores", lambda model, judged: (np.arange(5.0), np.arange(1.0)))
    with pytest.raises(DataError, match="1 anomalies and 5 held-out examples: give two of each"):
        anomalies.measure(None, context)


def with_anomalies(folder: Path, sha256: str = "") -> str:
    x = np.random.default_rng(1).choice([0, 4], size=(30, 4, 4)).astype(np.uint8)
    np.save(folder / "odd.npy", x, allow_pickle=False)
    sha256 = sha256 or hashlib.sha256((folder / "odd.npy").read_bytes()).hexdigest()
    names = f"metrics: [elbo, anomaly_auroc, anomaly_average_precision], anomalies: {{source: odd.npy, sha256: {sha256}}}"
    return PARAMS.replace("importance_samples: 4}", f"importance_samples: 4, {names}}}")


@pytest.mark.slow
def test_the_step_measures_anomalies_of_a_file(workspace: Path) -> None:
    (workspace / "params.yaml").write_text(with_anomalies(workspace))
    done = run_step(workspace, "evaluate", "tiny-vae")
    assert done.returncode == 0, done.stderr
    metrics = EvaluationReport.read(workspace / "outs/reports/tiny-vae/report.json").metrics
    for name in ("anomaly_auroc", "anomaly_average_precision"):
        assert metrics[name].n == 30 and metrics[name].low <= metrics[name].value <= metrics[name].high
    (workspace / "params.yaml").write_text(with_anomalies(workspace, "f" * 64))
    assert "its SHA-256 is" in run_step(workspace, "evaluate", "tiny-vae").stderr


def test_only_pipelines_with_anomalies_depend_on_the_code_of_scores(tmp_path: Path) -> None:
    from remint.runtime.yaml import load_safe_yaml

    for text, depends in ((PARAMS, False), (with_anomalies(tmp_path), True)):
        params = validate_params(load_safe_yaml(text))
        assert EvaluateStep.of(params, "tiny-vae").scores_anomalies is depends
        (key,) = (content for step, _, content in resolved(params) if step == "evaluate")
        assert ("remint.models.scores" in key["code"]) is depends, json.dumps(sorted(key["code"]))


def test_the_metrics_need_anomalies() -> None:
    from remint.errors import SettingsError
    from remint.runtime.yaml import load_safe_yaml

    text = PARAMS.replace("importance_samples: 4}", "importance_samples: 4, metrics: [anomaly_auroc]}")
    with pytest.raises(SettingsError, match=r"anomaly_auroc needs evaluation.anomalies"):
        validate_params(load_safe_yaml(text))
