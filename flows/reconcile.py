"""Gives what a killed job left open an end: Prefect's flow run, MLflow's run, its workspace. Every job does it first."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from remint import jobs, stores, workspace
from remint.home import Home


def reconcile(home: Home) -> list[str]:
    """One line for each job that had died."""
    findings = []
    for job in jobs.dead(home):
        facts = job.facts
        reason = f"process {facts['pid']} of job {job.id} died; the next run of {facts['pipeline']} goes on from its checkpoint"
        if facts.get("flow_run"):
            _crash(UUID(facts["flow_run"]), reason)
        store = stores.tracking(home)
        if facts.get("mlflow_run"):
            store.end_run(facts["mlflow_run"], "KILLED", reason)
        store.close_stale()  # one that was opened and not yet noted when the process died
        workspace.remove(home.workspaces / job.id)
        job.note(done=True)
        findings.append(reason)
    return findings


def _crash(flow_run: UUID, reason: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run)
        except ObjectNotFound:
            return
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(flow_run, Crashed(message=reason), force=True)
