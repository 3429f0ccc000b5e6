"""Scheduled runs under the real stack: due, killed and restarted, cancelled by a person, stopped and handed back.

The ledger of the first story is on a PostgreSQL that asks for a password, which a run has from its worker's environment only.
The stack's servers listen on 127.0.0.1, and answer to no other name (cases 29 and 30).
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from tests.support.leaks import Search, make_secrets, record_command_lines
from tests.support.postgres import Postgres
from tests.support.prefect_server import PrefectServer, request_json
from tests.support.processes import query_or_default
from tests.support.stack import ENDLESS, Stack, all_end_within
from tests.support.team import Team
from tests.support.trials import Trials

HEARTBEATS = 3 * 30.0  # seconds
TIME_LIMIT = 240.0  # seconds that docs/how-to/killed-runs.md promises


SECRETS = make_secrets(random.Random(30), ["ledger", "PREFECT_API_KEY", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"])


@dataclass
class TeamWithSecrets(Team):
    """Team with secrets in its environment."""

    ledger: str = ""

    def environment(self) -> dict[str, str]:
        own = {name: secret for name, secret in SECRETS.items() if name.isupper()}
        return {**super().environment(), **own, "REMINT_LEDGER": self.ledger}


def is_refused(url: str, **headers: str) -> bool:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (400, 403)


def assert_local_only(prefect: int, mlflow: int, console: int, stack: int) -> None:
    """Check the sockets of the real processes, and requests with other host names and origins."""
    processes = [psutil.Process(stack), *psutil.Process(stack).children(recursive=True)]
    sockets = [
        each
        for process in processes
        for each in query_or_default(process.net_connections, [])
        if each.status == psutil.CONN_LISTEN
    ]
    assert {each.laddr.port for each in sockets} >= {prefect, mlflow, console}
    assert {each.laddr.ip for each in sockets} == {"127.0.0.1"}, sockets
    paths = (f"{prefect}/api/admin/version", f"{mlflow}/", f"{prefect}/", f"{console}/")
    for url in (f"http://127.0.0.1:{path}" for path in paths):
        for host in ("evil.example", "10.evil.example", "127.0.0.1.evil.example"):
            assert is_refused(url, Host=host), (url, host)
        assert not is_refused(url) and not is_refused(
            url, Host=urllib.parse.urlsplit(url).netloc.replace("127.0.0.1", "localhost")
        )
    assert is_refused(f"http://127.0.0.1:{prefect}/api/admin/version", Origin="http://evil.example")


@pytest.fixture
def stack(lone_team: Team, tmp_path: Path) -> Iterator[Stack]:
    started = Stack(lone_team, tmp_path / "log")
    try:
        yield started
    finally:
        if started.up.poll() is None:
            started.stop()


@dataclass
class Scheduled:
    """The stack of a team with secrets, on a PostgreSQL ledger; digits-flow is due every half minute."""

    stack: Stack
    command_lines: set[str]


@pytest.fixture(scope="module")
def scheduled(cached_template: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduled]:
    postgres.add_password_role("scheduled", SECRETS["ledger"])
    postgres.execute("CREATE DATABASE scheduled OWNER scheduled")
    password = urllib.parse.quote(SECRETS["ledger"], safe="")
    folder, command_lines = tmp_path_factory.mktemp("scheduled"), set[str]()
    shutil.copytree(cached_template, folder / "team", symlinks=True)
    team = TeamWithSecrets(folder / "team", ledger=f"postgresql://scheduled:{password}@/scheduled?host={postgres.folder}")
    with record_command_lines(command_lines):
        stack = Stack(team, folder / "log", **{"digits-flow": 30})
        try:
            yield Scheduled(stack, command_lines)
        finally:
            if stack.up.poll() is None:
                stack.stop()


def test_1_a_schedule_starts_a_run_that_registers_a_version(scheduled: Scheduled) -> None:
    stack, team = scheduled.stack, scheduled.stack.team

    def completed() -> list[dict[str, Any]]:
        assert stack.up.poll() is None, stack.log.read_text()
        runs = stack.request("/flow_runs/filter", {})
        return [run for run in runs if run["auto_scheduled"] and run["state_type"] == "COMPLETED"]

    run = stack.wait_for(completed, 420.0)[0]
    assert run["parameters"]["pipeline"] == "digits-flow" and run["parameters"]["branch"] == "main"
    due = datetime.fromisoformat(run["expected_start_time"]).astimezone()
    assert (run["name"], run["state_name"]) == (f"digits-flow {due:%Y-%m-%d}", "Promoted")
    (version,) = team.json("models", "digits-flow")
    assert version["aliases"] == ["champion"] and version["commit"] == team.sh("git rev-parse HEAD").strip()
    assert_local_only(stack.port, stack.mlflow_port, stack.console_port, stack.up.pid)
    page = urllib.request.urlopen(f"http://127.0.0.1:{stack.console_port}/", timeout=60).read().decode()
    assert f'<a href="/models/digits-flow/{version["version"]}">' in page, "the console shows the first champion"
    assert "digits-vae" in page and "2028-02-29 00:00 UTC" in page, "and when Prefect starts the next run"
    served = f"http://127.0.0.1:{stack.console_port}/v1/models/digits-flow"
    stack.wait_for(lambda: json.load(urllib.request.urlopen(served, timeout=20))["version"] == version["version"])
    assert {entry["pipeline"] for entry in team.json("deploy")} == {"digits-flow", "digits-vae"}
    stack.request(f"/deployments/{stack.deployment('digits-flow')['id']}/pause_deployment", {})  # the next test runs without it


@pytest.mark.soak
@pytest.mark.case(10)
def test_a_killed_flow_is_started_again_and_a_cancelled_one_is_not(trials: Trials, request: pytest.FixtureRequest) -> None:
    """The second part of the story, in `make test`."""
    soak = request.config.getoption("--soak")
    stack: Stack = request.getfixturevalue("stack") if soak else request.getfixturevalue("scheduled").stack
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


def test_3_the_stack_stops_and_leaves_no_process_and_no_secret(scheduled: Scheduled) -> None:
    stack = scheduled.stack
    stack.stop(signal.SIGINT)
    assert not (stack.home.path / "stack.json").exists()
    canary = "reason given: scheduled"  # in the ledger whose address is in the worker's environment
    search = Search([*SECRETS.values(), canary])
    search.tree(stack.team.folder)
    search.git(stack.team.folder)
    search.postgres(stack.team.environment()["REMINT_LEDGER"])
    search.texts("what was said", stack.log.read_text())
    search.texts("a process", *scheduled.command_lines)
    assert "table ledger" in search.found.pop(canary) and any("mlflow server" in line for line in scheduled.command_lines)
    assert not any(search.found.values()), search.found


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
