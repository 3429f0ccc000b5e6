"""Exporter of this installation: Prefect's metrics, the parts put together, and the server of ``remint metrics``.

Prefect is asked over plain HTTP requests (flows/server/client.py), each with a limit of five seconds. Retrainings and steps are
counted when they end: a read asks for those that ended since the read before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric

from flows.server import client, server
from flows.stack.doctor import needed_pools, online
from flows.stack.outlook import ENDED, PAGE, ask, in_state, longest_gap, obstacle, pipeline_of, post
from remint.maintenance.metrics.catalogue import METRICS, gauge, label
from remint.maintenance.metrics.exporter import Exporter, Part
from remint.maintenance.metrics.ledger import LedgerMetrics
from remint.maintenance.metrics.of_home import of_home
from remint.maintenance.metrics.trainings import trainings
from remint.runtime.home import Home, is_name
from remint.serving.app import run
from remint.serving.app.limits import Door, Limits
from remint.serving.app.metrics import Requests
from remint.settings.params import Params

FLOWS = ("retrain", "step", "watch", "monitor", "shadow", "approve", "tidy")  # remint's that are deployed
STATES = {"late": "Late", "pending": "Pending", "running": "Running", "awaiting_retry": "AwaitingRetry"}
VERDICTS = ("promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow", "unchanged", "skipped")
PAGES = 10  # of one read's ended runs, and as many of steps; what is beyond them is not counted
OVERLAP = timedelta(minutes=5)  # Prefect learns of the end of a step later than of others
SHORT = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)  # seconds of a step
LONG = (60, 300, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600)  # seconds of a retraining


class Ends:
    """Retrainings, or their steps, that ended since the last read, each once. The first read gives the newest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind  # flow_runs or task_runs
        self.first = True
        self._newest: datetime | None = None
        self._known: dict[str, datetime] = {}  # by id, the ends within OVERLAP of the newest

    def read(self, address: str) -> list[Mapping[str, Any]]:
        """Return them in the order of their ends."""
        wanted: dict[str, Any] = in_state(*ENDED)
        if self._newest is not None:
            wanted["end_time"] = {"after_": (self._newest - OVERLAP).isoformat()}
        found: list[Mapping[str, Any]] = []
        for place in range(PAGES):
            body = {self.kind: wanted, "sort": "END_TIME_DESC", "offset": place * PAGE}
            page = ask(address, f"{self.kind}/filter", body)
            found += page
            if len(page) < PAGE:
                break
        new = [each for each in found if each.get("end_time") and str(each["id"]) not in self._known]
        self._known |= {str(each["id"]): _moment(each["end_time"]) for each in new}
        if self._known:
            self._newest = max(self._known.values())
            self._known = {name: end for name, end in self._known.items() if end >= self._newest - 2 * OVERLAP}
        return sorted(new, key=lambda each: _moment(each["end_time"]))


class PrefectMetrics:
    """Reader of one Prefect server. It keeps the counts, and how the newest retraining of each pipeline ended."""

    def __init__(self, address: str, params: Callable[[], Params]) -> None:
        self.address, self.params = address, params
        self.registry = CollectorRegistry()
        self._retrainings = _counter("remint_retrainings_total", self.registry)
        self._steps = _counter("remint_steps_total", self.registry)
        self._seconds = _histogram("remint_retraining_seconds", LONG, self.registry)
        self._step_seconds = _histogram("remint_step_seconds", SHORT, self.registry)
        self._ended, self._ended_steps = Ends("flow_runs"), Ends("task_runs")
        self._success: dict[str, datetime] = {}  # by pipeline
        self._failed: dict[str, bool] = {}  # of the newest that was not cancelled

    def __call__(self) -> Iterator[Metric]:
        families = [*self._queue(), *self._deployed()]
        self._count()
        known = self.params().pipelines
        success, failed = gauge("remint_last_success_timestamp_seconds"), gauge("remint_retraining_failed")
        for name in known:
            if name in self._success:
                success.add_metric([name], self._success[name].timestamp())
            if name in self._failed:
                failed.add_metric([name], float(self._failed[name]))
        yield from (*families, success, failed, *self.registry.collect())

    def _queue(self) -> Iterator[Metric]:
        runs, late = gauge("remint_flow_runs"), gauge("remint_late_since_timestamp_seconds")
        flows = {"flows": {"name": {"any_": list(FLOWS)}}}
        for state, name in STATES.items():
            runs.add_metric([state], post(self.address, "flow_runs/count", {**flows, "flow_runs": _named(name)}))
        oldest = {"flow_runs": _named("Late"), "sort": "EXPECTED_START_TIME_ASC", "limit": 1}
        for each in post(self.address, "flow_runs/filter", {**flows, **oldest}):
            late.add_metric([], _moment(each["expected_start_time"]).timestamp())
        yield from (runs, late)

    def _deployed(self) -> Iterator[Metric]:
        """Read the workers of each pool that a pipeline needs, and the schedules that start runs."""
        deployed = {str(each["name"]): each for each in ask(self.address, "deployments/filter", {})}
        workers, schedules = gauge("remint_workers"), gauge("remint_schedule_seconds")
        for pool in needed_pools(self.params()):
            workers.add_metric([label(pool)], online(client.prefect(self.address), pool))
        for name, pipeline in self.params().pipelines.items():
            if pipeline.schedule is not None and not obstacle(deployed.get(name)):
                gap = longest_gap(pipeline.schedule)
                if gap is not None:
                    schedules.add_metric([name], gap)
        yield from (workers, schedules)

    def _count(self) -> None:
        """Count what ended. What ended before the exporter began is not counted: it would look like a burst."""
        first, first_steps = self._ended.first, self._ended_steps.first
        for each in self._ended.read(self.address):
            pipeline, kind = pipeline_of(each), each["state_type"]
            if not is_name(pipeline):
                continue  # a person started it with another parameter
            if kind == "COMPLETED":
                self._success[pipeline] = _moment(each["end_time"])
            if kind != "CANCELLED":
                self._failed[pipeline] = kind != "COMPLETED"
            if not first:
                self._retrainings.labels(pipeline, _verdict(each)).inc()
                self._seconds.labels(pipeline).observe(float(each["total_run_time"]))
        self._ended.first = False
        for step in self._ended_steps.read(self.address):
            if not first_steps:
                name = label(step["name"])
                self._steps.labels(name, str(step["state_type"]).lower()).inc()
                self._step_seconds.labels(name).observe(float(step["total_run_time"]))
        self._ended_steps.first = False


def exporter(home: Home, params: Callable[[], Params]) -> Exporter:
    """Return the exporter of a home. Prefect is a part of it if its address is known."""
    parts = [
        Part("ledger", LedgerMetrics(home)),
        Part("mlflow", lambda: trainings(home)),
        Part("home", lambda: of_home(home)),
    ]
    address = os.environ.get("PREFECT_API_URL") or server.recorded_addresses(home).get("prefect")
    if address:
        parts.append(Part("prefect", PrefectMetrics(address, params)))
    return Exporter(parts)


def serve(home: Home, params: Callable[[], Params], host: str, port: int, tell: Callable[[str], None]) -> None:
    """Answer /metrics until SIGINT or SIGTERM, with the token of REMINT_SERVE_TOKEN if it is set."""
    token = os.environ.get("REMINT_SERVE_TOKEN")
    run.check([], host, token, tell)
    run.check_port(host, port)
    requests, made = Requests(), exporter(home, params)
    requests.registry.register(made)
    app = FastAPI(openapi_url=None)
    app.add_api_route("/metrics", requests.page)
    app.add_api_route("/healthz", lambda: PlainTextResponse("alive\n"))
    tell(f"metrics are at http://{host}:{port}/metrics")
    with closing(made):
        run.listen(Door(app, Limits(), token, requests.refused), host, port, token)


def _counter(name: str, registry: CollectorRegistry) -> Counter:
    return Counter(name.removesuffix("_total"), METRICS[name].help, METRICS[name].labels, registry=registry)


def _histogram(name: str, buckets: Sequence[float], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, METRICS[name].help, METRICS[name].labels, buckets=buckets, registry=registry)


def _verdict(run_: Mapping[str, Any]) -> str:
    """Return the final state as the ledger writes a verdict: AwaitingApproval is awaiting_approval."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", str(run_.get("state_name") or "")).lower()
    return name if name in VERDICTS else str(run_["state_type"]).lower()


def _named(state: str) -> dict[str, Any]:
    return {"state": {"name": {"any_": [state]}}}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
