"""Metrics by name. An evaluation imports only the modules of its own metrics, and so depends on no other module.

A new metric is a line in remint.settings.catalogue and in ``METRICS`` of its module, or a plug-in: a module with ``FACTS``
and ``measure`` (docs/how-to/add-a-metric.md).
"""

from __future__ import annotations

import importlib
from typing import Any

from remint.evaluation.context import Metric
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model
from remint.settings import plugins
from remint.settings.catalogue import METRICS, Need

PROTOCOLS: dict[Need, type[Any]] = {
    "log_prob": HasLogProb,
    "elbo": HasElbo,
    "sample": CanSample,
    "classes": CanSample,
    "score": Model,
}


def metric_of(name: str) -> Metric:
    """Return the metric of this name. Raises SettingsError if the name is unknown or the plug-in is not valid."""
    if name not in METRICS:
        return Metric(plugins.module_of(name, "metric").measure)
    metric: Metric = importlib.import_module(plugins.module_name(name, "metric")).METRICS[name]
    return metric
