"""How well a model's default score tells labelled anomalies from held-out examples. Higher is better.

``anomaly_auroc``               probability that an anomaly has a higher score than a held-out example; 1/2: chance
``anomaly_average_precision``   mean over the anomalies of the share of anomalies among all with a score at least as high

The interval of the first covers the choice of anomalies and of held-out examples (DeLong et al., Comparing the areas under two
or more correlated ROC curves, 1988); that of the second is a bootstrap over both.

Shapes: N held-out examples, M anomalies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri

from remint.errors import DataError
from remint.evaluation.context import EvaluationContext, Measurement, Metric, finite
from remint.evaluation.intervals import CONFIDENCE, RESAMPLES

Array = np.ndarray[Any, Any]


def measure(model: object, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return both metrics. Raises DataError if there are fewer than two anomalies or held-out examples."""
    assert context.anomaly_scores is not None, "settings/judging.py demands evaluation.anomalies"
    normal_N, other_M = (finite(score, "anomaly_auroc") for score in context.anomaly_scores(model, context.judged))
    if min(len(normal_N), len(other_M)) < 2:
        raise DataError(f"anomaly_auroc: {len(other_M)} anomalies and {len(normal_N)} held-out examples: give two of each")
    file = context.settings.anomalies
    how = context.fingerprint(n=len(normal_N), anomalies=len(other_M), file=file.sha256 if file else "")
    above_M, below_N = placements(normal_N, other_M)
    half = float(ndtri(0.5 + CONFIDENCE / 2) * np.sqrt(above_M.var(ddof=1) / len(other_M) + below_N.var(ddof=1) / len(normal_N)))
    precision_M = precisions(normal_N, other_M)
    low, high = _bootstrap(normal_N, other_M, context.settings.seed)
    auroc = float(above_M.mean())
    return {
        "anomaly_auroc": Measurement(
            above_M, len(other_M), max(0.0, auroc - half), min(1.0, auroc + half), {**how, "interval": "DeLong"}
        ),
        "anomaly_average_precision": Measurement(
            precision_M, len(other_M), low, high, {**how, "interval": "bootstrap over held-out examples and anomalies"}
        ),
    }


def placements(normal_N: Array, other_M: Array) -> tuple[Array, Array]:
    """Return the share of normal scores below each anomaly's, and of anomalies' above each normal score; ties count half."""

    def share_below(of: Array, among: Array) -> Array:
        ascending = np.sort(among)
        both: Array = np.searchsorted(ascending, of, side="left") + np.searchsorted(ascending, of, side="right")
        return both / (2 * len(among))

    return share_below(other_M, normal_N), 1.0 - share_below(normal_N, other_M)


def precisions(normal_N: Array, other_M: Array) -> Array:
    """Return for each anomaly the share of anomalies among all examples with a score at least as high, float64 (M,)."""
    normal_count_M = len(normal_N) - np.searchsorted(np.sort(normal_N), other_M, side="left")
    other_count_M = len(other_M) - np.searchsorted(np.sort(other_M), other_M, side="left")
    found: Array = other_count_M / (other_count_M + normal_count_M)
    return found


def _bootstrap(normal_N: Array, other_M: Array, seed: int) -> tuple[float, float]:
    """Return the percentile interval of the average precision."""
    rng = np.random.default_rng(seed)
    means = [precisions(rng.choice(normal_N, len(normal_N)), rng.choice(other_M, len(other_M))).mean() for _ in range(RESAMPLES)]
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


METRICS = {"anomaly_auroc": Metric(measure), "anomaly_average_precision": Metric(measure)}
