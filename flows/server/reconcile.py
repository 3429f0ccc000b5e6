"""Clean-up after killed jobs: end their flow run in Prefect and their run in MLflow, and remove their workspace.

Every job does it first. A worker does it at its start and on schedule (flows/stack/tidy.py), and also restarts deployed
runs. ``remint audit`` uses ``orphan_runs`` to list open flow runs without a process, and changes nothing.
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
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Crashed

from flows.server import place, process_tags, stopping
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.runtime.jobs import Job
from remint.runtime.locks import locked
from remint.stores import git
from remint.stores.open import open_tracking

FLOWS = ["retrain", "train seed", "seed spread", "monitor", "step"]  # remint's flows; a shared server has others
OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
UNATTENDED = 120.0  # seconds; an open flow run without a job for longer than this has no process
RESTARTS = 5  # times that a deployed run is restarted after its process died; then a person must look
SETTLE = 3.0  # seconds between two checks: a run that is just ending must not count as one without a process
PAGE = 200  # flow runs per request


@dataclass(frozen=True)
class OrphanRun:
    """An open flow run without a process. ``job``: the dead job; None: no job of this home belongs to it."""

    id: UUID
    name: str
    state: str
    job: Job | None


def reconcile(home: Home) -> list[str]:
    """End the dead jobs, and the flow runs of this machine whose process died before their job began. Return a line for each."""
    return [end(home, job) for job in jobs.dead(home)] + _end_unrecorded()


def _end_unrecorded() -> list[str]:
    machine = process_tags.machine_tag()
    if machine is None:
        return []
    with get_client(sync_client=True) as client:
        over = [run for run in _open_runs(client, machine) if process_tags.process_is_over(run.tags)]
    for run in over:
        crash(run.id, "its process died before its job began")
    return [f"flow run {run.name} ({run.id}) was {run.state_name} and its process died" for run in over]


def sweep(home: Home, *, own_server: bool) -> list[str]:
    """Reconcile, end open flow runs without a process, and restart deployed runs. Return a line for each.

    ``own_server``: see orphan_runs.
    """
    with locked(home.lock("sweep")):
        lines = reconcile(home)
        for each in orphan_runs(home, own_server=own_server):
            crash(each.id, "it had no process")
            lines.append(f"flow run {each.name} ({each.id}) was {each.state} and had no process")
        return lines + restart(home)


def restart(home: Home) -> list[str]:
    """Hand the newest run of each schedule of this home back to Prefect if it crashed. Return a line for each."""
    alive = {job.facts.get("flow_run") for job in jobs.alive(home)}
    lines = []
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"]))):
            run = _newest(client, deployment.id)
            variables = deployment.job_variables
            pulled = place.REPOSITORY in (variables.get("env") or {})  # it may run on any host
            own_deployment = pulled or variables.get("working_dir") == str(home.repository)
            if not own_deployment or run is None or run.state_type != StateType.CRASHED or str(run.id) in alive:
                continue
            deaths = sum(state.type == StateType.CRASHED for state in client.read_flow_run_states(run.id))
            if deaths <= RESTARTS:
                why = f"its process died ({deaths} of at most {RESTARTS} times): a worker continues from the checkpoint"
                client.set_flow_run_state(run.id, AwaitingRetry(message=why))
                lines.append(f"{deployment.name}: {why}")
    return lines


def _newest(client: SyncPrefectClient, deployment: UUID) -> FlowRun | None:
    """Return the run of a deployment that was due last, among those that started and were not skipped."""
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
    """Clean up after one dead job. Return the reason that is written to Prefect and MLflow."""
    facts = job.facts
    retrained, rebuilt = f"the next run of {facts['pipeline']} continues from its checkpoint", facts.get("rebuild")
    next_step = f"remint rebuild {rebuilt} starts again from its first step" if rebuilt else retrained
    reason = f"process {facts['pid']} of job {job.id} died; {next_step}"
    if facts.get("flow_run"):
        crash(UUID(facts["flow_run"]), reason)
    store = open_tracking(home)
    if facts.get("mlflow_run"):
        store.end_run(facts["mlflow_run"], "KILLED", reason)
    store.close_stale()  # a run that was opened but not yet recorded when the process died
    copies = (job.folder / "champion", *job.folder.glob(".fetch-*"), *home.path.glob(f"evaluations/.*.{job.id}"))
    for folder in (home.workspaces / job.id, *copies):
        git.remove(folder)
    job.note(done=True)
    return reason


def crash(flow_run: UUID, reason: str) -> None:
    """End a flow run as Crashed. Do nothing if it has ended or is missing."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run)
        except ObjectNotFound:
            return
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(flow_run, Crashed(message=reason), force=True)


def orphan_runs(home: Home, *, own_server: bool) -> list[OrphanRun]:
    """Return the open flow runs without a process.

    ``own_server``: the server serves this home alone, so an open run without a job has no process, unless it is of another pool
    than that of remint up. On a shared server such a run may belong to another machine: then only runs of jobs that died here
    are returned.
    """
    found = _find_orphan_runs(home, own_server)
    if found:
        time.sleep(SETTLE)
        known = {each.id for each in _find_orphan_runs(home, own_server)}
        found = [each for each in found if each.id in known]
    return found


def _find_orphan_runs(home: Home, own_server: bool) -> list[OrphanRun]:
    with get_client(sync_client=True) as client:
        opened = list(_open_runs(client))
    # Read after the runs: jobs that started since are then alive, and jobs that ended have ended their runs.
    alive = {job.facts.get("flow_run") for job in jobs.alive(home)}
    dead = {job.facts.get("flow_run"): job for job in jobs.dead(home)}
    found = []
    for run in opened:
        job = dead.get(str(run.id))
        own = own_server and run.work_pool_name in (None, place.POOL)
        if job or (own and str(run.id) not in alive and _unattended(run)):
            found.append(OrphanRun(run.id, run.name, run.state_name or "open", job))
    return found


def _open_runs(client: SyncPrefectClient, tag: str | None = None) -> Iterator[FlowRun]:
    """Yield the open runs of remint's flows, with ``tag`` if it is given."""
    state, tagged = FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)), FlowRunFilterTags(all_=[tag]) if tag else None
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
            flow_run_filter=FlowRunFilter(state=state, tags=tagged),
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
