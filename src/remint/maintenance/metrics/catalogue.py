"""Catalogue of all metrics of the exporter. docs/how-to/watch.md shows this table, and alerts and panels use these names only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from remint.redaction import redacted

Kind = Literal["gauge", "counter", "histogram"]
Part = Literal["exporter", "ledger", "mlflow", "prefect", "home"]


@dataclass(frozen=True)
class Metric:
    """One metric. ``part``: where its values come from; it is missing while that part is away."""

    part: Part
    kind: Kind
    labels: tuple[str, ...]
    help: str


PIPELINE = ("pipeline",)

METRICS: dict[str, Metric] = {
    "remint_up": Metric("exporter", "gauge", ("part",), "1: this part was read in the last two minutes."),
    "remint_read_seconds": Metric("exporter", "gauge", ("part",), "Seconds that the newest read of this part took."),
    # The ledger's database.
    "remint_decisions_total": Metric("ledger", "counter", ("pipeline", "verdict"), "Rows of the ledger, people's included."),
    "remint_last_judgement_timestamp_seconds": Metric("ledger", "gauge", PIPELINE, "Time of the gate's newest row."),
    "remint_champion_version": Metric("ledger", "gauge", PIPELINE, "Number of the champion."),
    "remint_champion_since_timestamp_seconds": Metric("ledger", "gauge", PIPELINE, "Time when it became champion."),
    "remint_awaiting": Metric("ledger", "gauge", ("pipeline", "what"), "Versions that await approval or shadow."),
    "remint_awaiting_since_timestamp_seconds": Metric(
        "ledger", "gauge", ("pipeline", "what"), "Time since when the oldest of them waits."
    ),
    "remint_gate_tries": Metric("ledger", "gauge", PIPELINE, "Tries of the gate so far."),
    "remint_gate_budget_left_ratio": Metric("ledger", "gauge", PIPELINE, "Share of the error level that is left, from 0 to 1."),
    "remint_drift_check_timestamp_seconds": Metric("ledger", "gauge", PIPELINE, "Time of the newest drift check."),
    "remint_drift_alarm": Metric("ledger", "gauge", PIPELINE, "1: a drift alarm is open."),
    "remint_ledger_rows": Metric("ledger", "gauge", PIPELINE, "Rows of the pipeline's chain."),
    "remint_ledger_faults": Metric(
        "ledger",
        "gauge",
        PIPELINE,
        "Faults of its chains (decisions, serving events, drift checks), when they were last verified.",
    ),
    "remint_ledger_verified_timestamp_seconds": Metric("ledger", "gauge", PIPELINE, "Time of that verification."),
    # MLflow: trainings that run now.
    "remint_trainings": Metric("mlflow", "gauge", PIPELINE, "Trainings that run now."),
    "remint_training_examples_per_second": Metric(
        "mlflow", "gauge", PIPELINE, "Throughput of the newest of them, over all its processes."
    ),
    "remint_training_cpu_ratio": Metric("mlflow", "gauge", PIPELINE, "Use of the processors of its machine, from 0 to 1."),
    "remint_training_gpu_ratio": Metric("mlflow", "gauge", ("pipeline", "gpu"), "Use of each GPU of its machine, from 0 to 1."),
    "remint_training_gpu_memory_ratio": Metric("mlflow", "gauge", ("pipeline", "gpu"), "Share of that GPU's memory in use."),
    # Prefect.
    "remint_flow_runs": Metric("prefect", "gauge", ("state",), "Flow runs that are late, pending, running or awaiting a retry."),
    "remint_late_since_timestamp_seconds": Metric("prefect", "gauge", (), "Time when the oldest late flow run was due."),
    "remint_workers": Metric("prefect", "gauge", ("pool",), "Workers of this work pool that are online."),
    "remint_retrainings_total": Metric(
        "prefect", "counter", ("pipeline", "verdict"), "Retrainings that ended since the exporter began, by their final state."
    ),
    "remint_retraining_seconds": Metric("prefect", "histogram", PIPELINE, "Seconds of these, those that ended early included."),
    "remint_steps_total": Metric("prefect", "counter", ("step", "state"), "Steps of these retrainings that ended."),
    "remint_step_seconds": Metric("prefect", "histogram", ("step",), "Seconds of these steps."),
    "remint_last_success_timestamp_seconds": Metric("prefect", "gauge", PIPELINE, "Time when a retraining last ended well."),
    "remint_retraining_failed": Metric("prefect", "gauge", PIPELINE, "1: the newest retraining failed or crashed."),
    "remint_schedule_seconds": Metric("prefect", "gauge", PIPELINE, "Longest time between two starts of its schedule."),
    # REMINT_HOME of the exporter's host.
    "remint_home_free_bytes": Metric("home", "gauge", (), "Free space for REMINT_HOME on the exporter's host."),
    "remint_audit_timestamp_seconds": Metric("home", "gauge", (), "Time of the last audit in this REMINT_HOME; 0: none."),
    "remint_audit_findings": Metric("home", "gauge", ("kind",), "Findings that the last audit left, by kind."),
}


def gauge(name: str) -> GaugeMetricFamily:
    """Return the empty family of a gauge."""
    return GaugeMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def counter(name: str) -> CounterMetricFamily:
    """Return the empty family of a counter."""
    return CounterMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def label(text: object) -> str:
    """Return a label's value: one short line without secrets."""
    return " ".join(redacted(str(text)).split())[:100]
