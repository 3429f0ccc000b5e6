"""Automations of remint deploy for runs without a process, and their restart, with a real server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Pending, Running, State

from flows.server import process_tags, reconcile, stopping
from flows.stack.deploy import deploy, plan
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import load_params, read_params, write_params
from tests.support.team import Team


@pytest.fixture
def client(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        for each in found.read_deployments():  # deployments of other tests on this server
            found.delete_deployment(each.id)
        yield found


def deploy_schedules(team: Team, *schedules: str) -> Home:
    """Give a schedule to these pipelines only, and deploy."""
    content = read_params(team.folder)
    for name, pipeline in content["pipelines"].items():
        pipeline.pop("schedule", None)
        if name in schedules:
            pipeline["schedule"] = {"cron": "0 0 29 2 *"}
    write_params(content, team.folder)
    home = Home(team.folder, team.folder / ".remint").ensure()
    params = load_params(team.folder)
    deploy(home, params, plan(home, params, "main"))
    return home


def test_a_second_deploy_changes_nothing_and_old_deployments_are_removed(team: Team, client: SyncPrefectClient) -> None:
    def installed() -> tuple[list[str], list[tuple[str, int | None]]]:
        automations = [each.name for each in client.read_automations() if each.name.startswith("remint")]
        return sorted(automations), sorted((each.name, each.concurrency_limit) for each in client.read_deployments())

    deploy_schedules(team, "digits-vae", "digits-flow")
    first = installed()
    assert first == (["remint: crashed", "remint: silent"], [("digits-flow", None), ("digits-vae", None), ("remint", None)])
    deploy_schedules(team, "digits-vae", "digits-flow")
    assert installed() == first
    deploy_schedules(team, "digits-flow")
    assert installed() == (first[0], [("digits-flow", None), ("remint", None)])


def test_only_the_newest_crashed_run_of_a_schedule_is_restarted(team: Team, client: SyncPrefectClient) -> None:
    """Restart it unless a later run completed, it was restarted too often, or its process lives."""
    home = deploy_schedules(team, "digits-vae")
    deployment = client.read_deployment_by_name("retrain/digits-vae").id

    def create_run(*states: State[Any]) -> UUID:
        run = client.create_flow_run_from_deployment(deployment).id
        for state in states:
            client.set_flow_run_state(run, state, force=True)
        return run

    def state(run: UUID) -> str | None:
        return client.read_flow_run(run).state_name

    killed = create_run(Running(), Crashed(message="killed"))
    create_run(Cancelled(name=stopping.SKIPPED))
    with ExitStack() as stack:
        stack.enter_context(jobs.live(home, pipeline="digits-vae", flow_run=str(killed)))
        assert reconcile.restart(home) == [] and state(killed) == "Crashed", "its process lives"
    (notice,) = reconcile.sweep(home, own_server=False)
    assert "1 of at most 5" in notice and state(killed) == "AwaitingRetry"
    assert reconcile.restart(home) == [], "once"
    for _ in range(reconcile.RESTARTS):
        client.set_flow_run_state(killed, Crashed(message="killed"), force=True)
        client.set_flow_run_state(killed, AwaitingRetry(), force=True)
    client.set_flow_run_state(killed, Crashed(message="killed"), force=True)
    assert reconcile.restart(home) == [] and state(killed) == "Crashed", "a person has to look"
    later = create_run(Running(), Crashed())
    create_run(Running(), Completed(name="Kept"))
    assert reconcile.restart(home) == [] and state(later) == "Crashed", "it has been made up for"


def test_one_sweep_ends_and_restarts_a_dead_job(team: Team, client: SyncPrefectClient) -> None:
    home = deploy_schedules(team, "digits-flow")
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name("retrain/digits-flow").id).id
    client.set_flow_run_state(run, Running(), force=True)
    folder = home.jobs / "20260101T000000-dead00"
    folder.mkdir(parents=True)
    jobs.Job(folder).note(pid=1, pipeline="digits-flow", flow_run=str(run))
    assert len(reconcile.sweep(home, own_server=False)) == 2
    names = [each.name for each in sorted(client.read_flow_run_states(run), key=lambda each: str(each.timestamp))]
    assert names == ["Scheduled", "Running", "Crashed", "AwaitingRetry"]


def test_a_run_whose_process_died_before_its_job_began_is_ended(tmp_path: Path, client: SyncPrefectClient) -> None:
    from prefect import flow

    @flow(name="retrain")
    def retrain() -> None: ...

    (machine, own), dead = process_tags.own_tags(), subprocess.Popen(["sleep", "60"])
    died = f"remint-process {dead.pid} {process_tags._start(dead.pid)}"
    dead.kill()
    elsewhere = f"{machine}9"  # another boot, or another container
    tagged = {
        "died": [machine, died],
        "alive": [machine, own],
        "elsewhere": [elsewhere, died],
        "untagged": [],
        "reused": [machine, f"{own}1"],
    }
    runs = {name: client.create_flow_run(retrain, tags=tags, state=Pending()).id for name, tags in tagged.items()}
    try:
        said = reconcile.reconcile(Home(tmp_path, tmp_path / "home").ensure())
        states = {name: client.read_flow_run(run).state_type.value for name, run in runs.items()}
    finally:
        dead.wait()
        for run in runs.values():
            client.delete_flow_run(run)
    ended = {name for name, state in states.items() if state == "CRASHED"}
    assert ended == {"died", "reused"}, "a zombie is dead, and so is a process whose number another one has now"
    assert len(said) == 2 and all("its process died" in line for line in said)
