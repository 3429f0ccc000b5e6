"""Scheduled runs under the real stack: killed and restarted, cancelled by a person, stopped and handed back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from tests.support.ports import free_port
from tests.support.prefect_server import PrefectServer, request_json
from tests.support.processes import command_line, ends_within
from tests.support.team import Team
from tests.support.trials import Trials

HEARTBEATS = 3 * 30.0  # seconds
TIME_LIMIT = 240.0  # seconds that docs/how-to/killed-runs.md promises
ENDLESS = ["training.steps=1000000", "training.checkpoint_every=50", "model.hidden=64", "model.layers=1"]


class Stack:
    """`remint up` of a team, with digits-vae on a schedule that does not come due."""

    def __init__(self, team: Team, log: Path) -> None:
        self.team, self.log, self.home = team, log, Home(team.folder, team.folder / ".remint")
        content = read_params(team.folder)
        content["pipelines"]["digits-vae"]["schedule"] = {"cron": "0 0 29 2 *"}
        write_params(content, team.folder)
        team.sh("git commit -qam 'on leap days'")
        self.port, self.mlflow_port = free_port(), free_port()
        self.start()

    def start(self) -> None:
        self.up = self.team.start(
            "up", log=self.log, REMINT_PREFECT_PORT=str(self.port), REMINT_MLFLOW_PORT=str(self.mlflow_port)
        )
        self.wait_for(lambda: "Worker 'local' started" in self.log.read_text())

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(OSError, psutil.Error):
                found = condition()
                if found:
                    return found
            time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-6000:])

    def request(self, path: str, body: Any = None) -> Any:
        """Return Prefect's answer. Retries while Prefect is busy."""
        return self.wait_for(lambda: (request_json(f"http://127.0.0.1:{self.port}/api{path}", body),))[0]

    def begin(self) -> str:
        """Start a run that trains until it is stopped. Return its id."""
        (deployment,) = self.request("/deployments/filter", {"deployments": {"name": {"any_": ["digits-vae"]}}})
        parameters = {**deployment["parameters"], "overrides": ENDLESS}
        body = {"parameters": parameters, "idempotency_key": str(time.monotonic())}
        return str(self.request(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state_names(self, run: str, *names: str) -> list[str]:
        """Return the run's states that have one of these names, oldest first."""
        return [each["name"] for each in self.states(run) if each["name"] in names]

    def states(self, run: str) -> list[dict[str, Any]]:
        return sorted(self.request(f"/flow_run_states/?flow_run_id={run}"), key=lambda state: str(state["timestamp"]))

    def training_processes(self) -> list[psutil.Process]:
        """Return the flow's process and its descendants once it has a checkpoint and an MLflow run; else an empty list."""
        for job in jobs.alive(self.home):
            if "mlflow_run" in job.facts and list(self.home.checkpoints.glob("*/step-*")):
                flow = psutil.Process(job.facts["pid"])
                children = flow.children(recursive=True)
                if any(command_line(each)[1:3] == ["-m", "pipelines.train"] for each in children):
                    return [flow, *children]
        return []

    def mlflow(self) -> list[str]:
        query = "import sqlite3; print([s for s, in sqlite3.connect('.remint/mlflow/mlflow.db').execute('select status from runs order by start_time')])"
        return list(json.loads(self.team.sh(f'python -c "{query}"').replace("'", '"')))

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop the stack, and check that no process is left."""
        children = psutil.Process(self.up.pid).children(recursive=True)
        self.up.send_signal(sign)
        with suppress(subprocess.TimeoutExpired):
            self.up.wait(timeout=60)
        assert all_end_within(children, 30.0)


@pytest.fixture
def stack(lone_team: Team, tmp_path: Path) -> Iterator[Stack]:
    started = Stack(lone_team, tmp_path / "log")
    try:
        yield started
    finally:
        if started.up.poll() is None:
            started.stop()


def all_end_within(processes: list[psutil.Process], seconds: float = 5.0) -> bool:
    """Return whether all processes end within some seconds. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    return all(ends_within(each.pid, max(deadline - time.monotonic(), 0.1)) for each in processes)


@pytest.mark.case(10)
def test_a_killed_flow_is_started_again_and_a_cancelled_one_is_not(trials: Trials, stack: Stack) -> None:
    for trial in trials(short=1, full=5):
        run = stack.begin()
        tree = stack.wait_for(stack.training_processes)
        time.sleep(trial.random.uniform(0.0, 1.0))
        tree[0].kill()
        killed = time.monotonic()
        assert all_end_within(tree, 5.0 if trials.soak else 20.0)  # other tests slow it down
        state_names = partial(stack.state_names, run, "Running", "Crashed", "AwaitingRetry")
        stack.wait_for(lambda: state_names()[1:][-1:] == ["Running"], HEARTBEATS)  # noqa: B023
        assert time.monotonic() - killed < HEARTBEATS
        assert state_names() == ["Running", "Crashed", "AwaitingRetry", "Running"]
        tree = stack.wait_for(stack.training_processes)
        stack.request(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        assert all_end_within(tree, 60.0)
        stack.wait_for(lambda: stack.states(run)[-1]["name"] == "Cancelled")  # noqa: B023
        time.sleep(3.0)
        assert stack.states(run)[-1]["name"] == "Cancelled", "a person's word stays"
        assert stack.mlflow()[-2:] == ["KILLED", "KILLED"]
        trial.note(killed=1, started_again=1, mlflow_left_running=0)


@pytest.mark.soak
def test_a_restarted_stack_resumes_its_run_from_the_checkpoint(stack: Stack) -> None:
    """As when a machine is taken away: SIGTERM, its grace period, and another `remint up`."""
    run = stack.begin()
    stack.wait_for(stack.training_processes)
    stack.stop()
    assert stack.mlflow() == ["KILLED"]
    stack.log.write_text("")
    stack.start()
    stack.wait_for(stack.training_processes)
    names = [each["name"] for each in stack.states(run)]
    assert "Crashed" not in names and names[-4:] == ["AwaitingRetry", "Pending", "Submitting", "Running"]


@pytest.mark.soak
def test_a_scheduled_run_resumes_after_all_processes_were_killed(stack: Stack) -> None:
    run = stack.begin()
    tree = stack.wait_for(stack.training_processes)
    everything = psutil.Process(stack.up.pid).children(recursive=True)
    for each in (psutil.Process(stack.up.pid), *everything):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    stack.up.wait()
    assert all_end_within(tree)
    stack.log.write_text("")
    stack.start()
    stack.wait_for(stack.training_processes)
    names = [each["name"] for each in stack.states(run)]
    assert names[-5:] == ["Crashed", "AwaitingRetry", "Pending", "Submitting", "Running"]
    assert stack.mlflow() == ["KILLED", "RUNNING"]


@pytest.mark.soak
def test_a_killed_manual_run_is_closed_within_the_stated_time(stack: Stack, tmp_path: Path) -> None:
    """It has no worker that notices its end, so Prefect's server misses its heartbeat. A healthy run is not affected."""
    healthy = stack.begin()
    stack.wait_for(stack.training_processes)
    overrides = [argument for each in ENDLESS[:2] for argument in ("--set", each)]
    run = stack.team.start("run", "digits-flow", *overrides, log=tmp_path / "run")
    try:
        stack.wait_for(lambda: len(stack.mlflow()) == 2, 300.0)
        (killed,) = [each["id"] for each in stack.request("/flow_runs/filter", {}) if each["name"] == "digits-flow"]
    finally:
        run.kill()
        run.wait()
    stack.wait_for(
        lambda: stack.states(killed)[-1]["name"] == "Crashed" and sorted(stack.mlflow()) == ["KILLED", "RUNNING"], TIME_LIMIT
    )
    assert "died" in stack.states(killed)[-1]["message"]
    assert [each["name"] for each in stack.states(healthy)][-1] == "Running"


@pytest.mark.soak
def test_a_worker_of_a_shared_server_hands_its_run_back_with_a_checkpoint(lone_team: Team, tmp_path: Path) -> None:
    """The command of docs/how-to/production.md: no `remint up` on that host, and SIGTERM as systemd sends it."""
    team, server = lone_team, PrefectServer(lone_team.folder / ".remint/prefect", tmp_path / "prefect")
    home = Home(team.folder, team.folder / ".remint")
    try:
        content = read_params(team.folder)
        content["pipelines"]["digits-vae"]["schedule"] = {"cron": "0 0 29 2 *"}
        write_params(content, team.folder)
        team.sh("git commit -qam 'on leap days'")
        team.api = server.url
        (deployed,) = team.json("deploy")
        command = [sys.executable, "-m", "flows.stack.worker"]
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen(command, cwd=team.folder, env=team.environment(), stdout=log, stderr=log)
        parameters = {"pipeline": "digits-vae", "branch": "main", "overrides": ENDLESS}
        run = request_json(f"{server.url}/deployments/{deployed['id']}/create_flow_run", {"parameters": parameters})["id"]
        deadline = time.monotonic() + 240
        while not list(home.checkpoints.glob("*/step-*")):
            assert worker.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        children = psutil.Process(worker.pid).children(recursive=True)
        worker.terminate()
        worker.wait(timeout=90)
        assert all_end_within(children)
        assert request_json(f"{server.url}/flow_runs/{run}")["state"]["name"] == "AwaitingRetry", (tmp_path / "log").read_text()
    finally:
        server.stop()
