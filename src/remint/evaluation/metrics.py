"""The metrics, by name: what measures each. What each asks of a model, and what its numbers mean, says remint.metrics.

A new one is a line in both, or a plug-in: a module with ``FACTS`` and ``measure`` (docs/how-to/add-a-metric.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from remint import plugins
from remint.evaluation import distance, likelihood
from remint.evaluation.bench import Bench, Measurement
from remint.metrics import Need
from remint.models.contract import CanSample, HasElbo, HasLogProb

PROTOCOLS: dict[Need, type[Any]] = {"log_prob": HasLogProb, "elbo": HasElbo, "sample": CanSample, "classes": CanSample}


@dataclass(frozen=True)
class Metric:
    """What measures one metric. Metrics that come of one pass over the model share their ``measure``, which runs once."""

    measure: Callable[[Any, Bench], Mapping[str, Measurement]]  # measurements by metric name
    context: Mapping[str, Callable[[Bench], Measurement]] = field(default_factory=dict)  # beside it, and not of the model


_LIKELIHOOD = {"factorised": likelihood.factorised}
METRICS: dict[str, Metric] = {
    "nll": Metric(likelihood.exact, _LIKELIHOOD),
    "elbo": Metric(likelihood.bounds, _LIKELIHOOD),
    "iwae": Metric(likelihood.bounds, _LIKELIHOOD),
    "fd_domain": Metric(distance.domain, {"fd_domain_floor": distance.floor}),
    "class_agreement": Metric(distance.agreement),
}


def metric_of(name: str) -> Metric:
    """What measures the metric. Raises SettingsError: an unknown name, a plug-in that is none."""
    if name in METRICS:
        return METRICS[name]
    return Metric(plugins.module_of(name, "metric").measure)
