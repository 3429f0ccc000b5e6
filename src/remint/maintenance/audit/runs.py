"""Audit of MLflow's runs: open runs of dead processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from remint.maintenance.audit.fault import Fault, fault
from remint.stores.mlflow import Tracking
from remint.stores.mlflow.runs import DIED


def stale(store: Tracking) -> Iterator[Fault]:
    """Find RUNNING runs whose process, on this host, has died. Processes of other hosts cannot be checked from here."""
    for run_id in store.stale_runs():
        yield fault(
            "run",
            f"run {run_id}",
            "It is RUNNING, and the process that opened it has died.",
            "It looks like a training that still runs.",
            "remint audit --repair closes it as KILLED with that reason.",
            mend=partial(store.end_run, run_id, "KILLED", DIED),
        )
