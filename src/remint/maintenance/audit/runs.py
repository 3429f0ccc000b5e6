"""MLflow's runs that nobody will close."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from remint.maintenance.audit.fault import Fault, fault
from remint.stores.mlflow import Tracking
from remint.stores.mlflow.runs import DIED


def stale(store: Tracking) -> Iterator[Fault]:
    """Runs that a process of this host opened and left RUNNING when it died. Those of other hosts cannot be told from here."""
    for run_id in store.stale_runs():
        yield fault(
            "run",
            f"run {run_id}",
            "It is RUNNING, and the process that opened it has died.",
            "It looks as if something were still training.",
            "remint audit --repair closes it as KILLED with that reason.",
            mend=partial(store.end_run, run_id, "KILLED", DIED),
        )
