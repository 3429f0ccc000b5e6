"""The metrics, by name: what measures each. What each asks of a model, and what its numbers mean, says remint.settings.catalogue.

A new one is a line in both, or a plug-in: a module with ``FACTS`` and ``measure`` (docs/how-to/add-a-metric.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from remint.evaluation import agreement, distance, kernel, likelihood, neighbours
from remint.evaluation.context import EvaluationContext, Measurement
from remint.models.contract import CanSample, HasElbo, HasLogProb
from remint.settings import plugins
from remint.settings.catalogue import Features, Need, in_features

PROTOCOLS: dict[Need, type[Any]] = {"log_prob": HasLogProb, "elbo": HasElbo, "sample": CanSample, "classes": CanSample}


@dataclass(frozen=True)
class Metric:
    """What measures one metric. Metrics that come of one pass over the model share their ``measure``, which runs once."""

    measure: Callable[[Any, EvaluationContext], Mapping[str, Measurement]]  # measurements by metric name
    context: Mapping[str, Callable[[EvaluationContext], Measurement]] = field(
        default_factory=dict
    )  # beside it, and not of the model


def _of_samples(features: Features) -> dict[str, Metric]:
    """The metrics of samples in these features."""
    fidelity = Metric(partial(neighbours.fidelity, features))
    fd = in_features("fd", features)
    return {
        fd: Metric(partial(distance.frechet, features), {f"{fd}_floor": partial(distance.real_data_floor, features)}),
        in_features("fd_infinity", features): Metric(partial(distance.frechet_infinity, features)),
        in_features("kid", features): Metric(partial(kernel.kid, features)),
        **{in_features(metric, features): fidelity for metric in ("precision", "density", "coverage")},
        in_features("recall", features): Metric(partial(neighbours.recall, features)),
    }


_LIKELIHOOD = {"factorised": likelihood.independent_baseline}
METRICS: dict[str, Metric] = {
    "nll": Metric(likelihood.exact, _LIKELIHOOD),
    "elbo": Metric(likelihood.bounds, _LIKELIHOOD),
    "iwae": Metric(likelihood.bounds, _LIKELIHOOD),
    "class_agreement": Metric(agreement.agreement),
    "novelty": Metric(neighbours.novelty),
    **_of_samples("domain"),
    **_of_samples("inception"),
    **_of_samples("program"),
}


def metric_of(name: str) -> Metric:
    """What measures the metric. Raises SettingsError: an unknown name, a plug-in that is none."""
    if name in METRICS:
        return METRICS[name]
    return Metric(plugins.module_of(name, "metric").measure)
