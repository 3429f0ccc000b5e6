"""Scheduled run: the real local stack, a deployment with an interval of seconds, a flow run that registers a version.

The ledger is on a PostgreSQL with a password, which the run gets only from its worker's environment. The stack's servers
listen on 127.0.0.1, and refuse other host names (cases 29 and 30).
"""

from __future__ import annotations

import random
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from remint.settings.params import read_params, write_params
from tests.support.leaks import Search, make_secrets, record_command_lines
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.prefect_server import request_json
from tests.support.processes import query_or_default
from tests.support.team import Team

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
        return error.code == 403


def assert_local_only(prefect: int, mlflow: int, stack: int) -> None:
    """Check the sockets of the real processes, and requests with other host names and origins."""
    processes = [psutil.Process(stack), *psutil.Process(stack).children(recursive=True)]
    sockets = [
        each
        for process in processes
        for each in query_or_default(process.net_connections, [])
        if each.status == psutil.CONN_LISTEN
    ]
    assert {each.laddr.port for each in sockets} >= {prefect, mlflow}
    assert {each.laddr.ip for each in sockets} == {"127.0.0.1"}, sockets
    for url in (f"http://127.0.0.1:{prefect}/api/admin/version", f"http://127.0.0.1:{mlflow}/", f"http://127.0.0.1:{prefect}/"):
        for host in ("evil.example", "10.evil.example", "127.0.0.1.evil.example"):
            assert is_refused(url, Host=host), (url, host)
        assert not is_refused(url) and not is_refused(
            url, Host=urllib.parse.urlsplit(url).netloc.replace("127.0.0.1", "localhost")
        )
    assert is_refused(f"http://127.0.0.1:{prefect}/api/admin/version", Origin="http://evil.example")


def test_a_schedule_starts_a_run_that_registers_a_version(lone_team: Team, tmp_path: Path, postgres: Postgres) -> None:
    postgres.add_password_role("scheduled", SECRETS["ledger"])
    postgres.execute("CREATE DATABASE scheduled OWNER scheduled")
    password = urllib.parse.quote(SECRETS["ledger"], safe="")
    team = TeamWithSecrets(lone_team.folder, ledger=f"postgresql://scheduled:{password}@/scheduled?host={postgres.folder}")
    command_lines: set[str] = set()
    with record_command_lines(command_lines):
        _run_schedule(team, tmp_path)
    canary = "reason given: scheduled"  # in the ledger whose address is in the worker's environment
    search = Search([*SECRETS.values(), canary])
    search.tree(team.folder)
    search.git(team.folder)
    search.postgres(team.ledger)
    search.texts("what was said", (tmp_path / "log").read_text())
    search.texts("a process", *command_lines)
    assert "table ledger" in search.found.pop(canary) and any("mlflow server" in line for line in command_lines)
    assert not any(search.found.values()), search.found


def _run_schedule(team: Team, tmp_path: Path) -> None:
    content = read_params(team.folder)
    content["pipelines"]["digits-flow"]["schedule"] = {"interval": 30}
    write_params(content, team.folder)
    team.sh("git commit -qam 'every half minute'")
    prefect, mlflow = free_port(), free_port()
    stack = team.start("up", log=tmp_path / "log", REMINT_PREFECT_PORT=str(prefect), REMINT_MLFLOW_PORT=str(mlflow))
    try:
        deadline = time.monotonic() + 420
        done: list[Any] = []
        while not done and time.monotonic() < deadline:
            assert stack.poll() is None, (tmp_path / "log").read_text()
            time.sleep(1)
            try:
                runs = request_json(f"http://127.0.0.1:{prefect}/api/flow_runs/filter", {})
            except OSError:
                continue
            done = [run for run in runs if run["auto_scheduled"] and run["state_type"] == "COMPLETED"]
        assert done, (tmp_path / "log").read_text()[-6000:]
        assert done[0]["parameters"]["pipeline"] == "digits-flow" and done[0]["parameters"]["branch"] == "main"
        due = datetime.fromisoformat(done[0]["expected_start_time"]).astimezone()
        assert (done[0]["name"], done[0]["state_name"]) == (f"digits-flow {due:%Y-%m-%d}", "Promoted")
        (version,) = team.json("models", "digits-flow")
        assert version["aliases"] == ["champion"] and version["commit"] == team.sh("git rev-parse HEAD").strip()
        assert_local_only(prefect, mlflow, stack.pid)
        deployed = team.json("deploy")
        assert [entry["pipeline"] for entry in deployed] == ["digits-flow"]
    finally:
        children = psutil.Process(stack.pid).children(recursive=True)
        stack.send_signal(signal.SIGINT)
        stack.wait(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=30)
        for child in alive:
            child.kill()
    assert not alive
    assert not (team.folder / ".remint/stack.json").exists()
