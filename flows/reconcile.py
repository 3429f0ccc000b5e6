"""Gives what a killed job left open an end: Prefect's flow run, MLflow's run, its workspace. Every job does it first.

``remint audit`` asks the same of Prefect without changing anything: which flow runs are open and have no process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from remint import jobs, stores, workspace
from remint.home import Home
from remint.jobs import Job

FLOWS = ["retrain", "train seed", "seed spread"]  # ours; a shared server has others
OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
UNATTENDED = 300.0  # seconds after which a flow run without a job has no process: starting one takes less
SETTLE = 3.0  # seconds between two looks, lest a run that is just ending is taken for one without a process
PAGE = 200  # flow runs in one request


@dataclass(frozen=True)
class Left:
    """A flow run that is open and has no process. ``job`` that died; None: no job of this home knows of it."""

    id: UUID
    name: str
    state: str
    job: Job | None


def reconcile(home: Home) -> list[str]:
    """One line for each job that had died."""
    return [end(home, job) for job in jobs.dead(home)]


def end(home: Home, job: Job) -> str:
    """Ends what one dead job left open; the reason that stands in Prefect and MLflow."""
    facts = job.facts
    retrained, rebuilt = f"the next run of {facts['pipeline']} goes on from its checkpoint", facts.get("rebuild")
    what_next = f"remint rebuild {rebuilt} starts again from its first step" if rebuilt else retrained
    reason = f"process {facts['pid']} of job {job.id} died; {what_next}"
    if facts.get("flow_run"):
        crash(UUID(facts["flow_run"]), reason)
    store = stores.tracking(home)
    if facts.get("mlflow_run"):
        store.end_run(facts["mlflow_run"], "KILLED", reason)
    store.close_stale()  # one that was opened and not yet noted when the process died
    workspace.remove(home.workspaces / job.id)
    job.note(done=True)
    return reason


def crash(flow_run: UUID, reason: str) -> None:
    """Ends a flow run as Crashed. Nothing where it has ended, or is gone."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run)
        except ObjectNotFound:
            return
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(flow_run, Crashed(message=reason), force=True)


def left(home: Home, *, own: bool) -> list[Left]:
    """The flow runs that are open and have no process.

    ``own``: the server serves this home alone, so that a run which no job of it knows belongs to nobody. On a shared one
    such a run may be another machine's: only those of jobs that died here are told.
    """
    found = _left(home, own)
    if found:
        time.sleep(SETTLE)
        known = {each.id for each in _left(home, own)}
        found = [each for each in found if each.id in known]
    return found


def _left(home: Home, own: bool) -> list[Left]:
    with get_client(sync_client=True) as client:
        opened = list(_open(client))
    # After the runs: a job that began since is alive by now, and one that ended has ended its run.
    alive = {job.facts.get("flow_run") for job in jobs.alive(home)}
    dead = {job.facts.get("flow_run"): job for job in jobs.dead(home)}
    found = []
    for run in opened:
        job = dead.get(str(run.id))
        if job or (own and str(run.id) not in alive and _unattended(run)):
            found.append(Left(run.id, run.name, run.state_name or "open", job))
    return found


def _open(client: SyncPrefectClient) -> Iterator[FlowRun]:
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN))),
            limit=PAGE,
            offset=offset,
        )
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


def _unattended(run: FlowRun) -> bool:
    since = run.state.timestamp if run.state else run.expected_start_time
    return since is not None and (datetime.now(UTC) - since).total_seconds() > UNATTENDED
