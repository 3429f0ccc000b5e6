"""Gives what a killed job left open an end: Prefect's flow run, MLflow's run, its workspace. Every job does it first.

A worker does it when it starts and when Prefect has it do so (flows/stack/tidy.py), and lets deployed runs go on besides.
``remint audit`` asks the same of Prefect without changing anything: which flow runs are open and have no process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Crashed

from flows.server import stopping
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.runtime.jobs import Job
from remint.runtime.locks import locked
from remint.stores import git
from remint.stores.open import open_tracking

FLOWS = ["retrain", "train seed", "seed spread"]  # ours; a shared server has others
OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
UNATTENDED = 120.0  # seconds after which a flow run without a job has no process: starting one takes less
RESTARTS = 5  # deaths of its processes after which a deployed run is left to a person
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


def sweep(home: Home, *, own: bool) -> list[str]:
    """Reconciles, ends the open flow runs that have no process, and lets deployed runs go on; a line each. ``own``: see left."""
    with locked(home.lock("sweep")):
        said = reconcile(home)
        for each in left(home, own=own):
            crash(each.id, "no process was at work on it")
            said.append(f"flow run {each.name} ({each.id}) was {each.state}, and no process was at work on it")
        return said + restart(home)


def restart(home: Home) -> list[str]:
    """Hands the newest run of each schedule of this home back to Prefect where it crashed; a line each."""
    alive = {job.facts.get("flow_run") for job in jobs.alive(home)}
    said = []
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"]))):
            run = _newest(client, deployment.id)
            ours = deployment.job_variables.get("working_dir") == str(home.repository)
            if not ours or run is None or run.state_type != StateType.CRASHED or str(run.id) in alive:
                continue
            deaths = sum(state.type == StateType.CRASHED for state in client.read_flow_run_states(run.id))
            if deaths <= RESTARTS:
                why = f"its process died ({deaths} of at most {RESTARTS} times): a worker goes on from the checkpoint"
                client.set_flow_run_state(run.id, AwaitingRetry(message=why))
                said.append(f"{deployment.name}: {why}")
    return said


def _newest(client: SyncPrefectClient, deployment: UUID) -> FlowRun | None:
    """The run of a deployment that was due last, of those that were begun and did not leave the field to another."""
    begun = FlowRunFilterState(
        type=FlowRunFilterStateType(not_any_=[StateType.SCHEDULED]), name=FlowRunFilterStateName(not_any_=[stopping.SKIPPED])
    )
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=begun),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    return runs[0] if runs else None


def end(home: Home, job: Job) -> str:
    """Ends what one dead job left open; the reason that stands in Prefect and MLflow."""
    facts = job.facts
    retrained, rebuilt = f"the next run of {facts['pipeline']} goes on from its checkpoint", facts.get("rebuild")
    what_next = f"remint rebuild {rebuilt} starts again from its first step" if rebuilt else retrained
    reason = f"process {facts['pid']} of job {job.id} died; {what_next}"
    if facts.get("flow_run"):
        crash(UUID(facts["flow_run"]), reason)
    store = open_tracking(home)
    if facts.get("mlflow_run"):
        store.end_run(facts["mlflow_run"], "KILLED", reason)
    store.close_stale()  # one that was opened and not yet noted when the process died
    copies = (job.folder / "champion", *job.folder.glob(".fetch-*"), *home.path.glob(f"evaluations/.*.{job.id}"))
    for folder in (home.workspaces / job.id, *copies):
        git.remove(folder)
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
