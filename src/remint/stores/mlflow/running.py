"""Open runs of remint in MLflow: the trainings that run now, with the last point of each curve."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remint.stores.mlflow.door import client, door
from remint.stores.mlflow.registration import Tracking

MOST_EXPERIMENTS, MOST_RUNS = 1000, 200  # that one look reads
THROUGHPUT = "examples_per_second"  # curve that a retraining adds to those of the trainer
GPU = re.compile(r"system/gpu_(?P<gpu>\d+)_(?P<kind>utilization|memory_usage)_percentage")  # curves of MLflow's system metrics


@dataclass(frozen=True)
class RunningTraining:
    """One open run."""

    pipeline: str
    values: dict[str, float]  # by curve, its last point


def running(store: Tracking) -> list[RunningTraining]:
    """Return the open runs of remint, newest first. A run that a killed process left open is among them."""
    with door("list open runs"):
        mlflow = client(store.uri, store.lock)
        experiments = [each.experiment_id for each in mlflow.search_experiments(max_results=MOST_EXPERIMENTS)]
        found = mlflow.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=MOST_RUNS) if experiments else []
        return [
            RunningTraining(run.info.run_name or "", dict(run.data.metrics)) for run in found if "remint.start" in run.data.tags
        ]
