"""Metrics of trainings that run now, from the open runs in MLflow: one listing of experiments and one search, both bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from remint.maintenance.metrics.catalogue import gauge, label
from remint.runtime.addresses import sqlite_file
from remint.runtime.home import Home
from remint.stores.mlflow.running import GPU, THROUGHPUT, RunningTraining, running
from remint.stores.open import open_tracking

# By metric: the curve that its value is the last point of, and the factor to its unit.
CURVES = {
    "remint_training_examples_per_second": (THROUGHPUT, 1.0),
    "remint_training_cpu_ratio": ("system/cpu_utilization_percentage", 0.01),
}
OF_GPUS = {"remint_training_gpu_ratio": "utilization", "remint_training_gpu_memory_ratio": "memory_usage"}


def trainings(home: Home) -> Iterator[Metric]:
    """Read MLflow's open runs. A database that does not exist is not made."""
    if (place := sqlite_file(home.tracking_uri)) and not place.exists():
        return
    runs = running(open_tracking(home))
    newest: dict[str, RunningTraining] = {}  # a run that a killed process left open is older
    for run in runs:
        newest.setdefault(run.pipeline, run)
    count = gauge("remint_trainings")
    for pipeline, number in Counter(run.pipeline for run in runs).items():
        count.add_metric([label(pipeline)], number)
    yield count
    for name, (curve, factor) in CURVES.items():
        family = gauge(name)
        for pipeline, run in newest.items():
            if curve in run.values:
                family.add_metric([label(pipeline)], run.values[curve] * factor)
        yield family
    for name, kind in OF_GPUS.items():
        family = gauge(name)
        for pipeline, run in newest.items():
            for curve, value in run.values.items():
                match = GPU.fullmatch(curve)
                if match and match["kind"] == kind:
                    family.add_metric([label(pipeline), match["gpu"]], value / 100.0)
        yield family
