"""`remint up` with a port that is taken, by a real process: nothing starts, and one line names the port and its holder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from flows.stack import ports
from remint.errors import OrchestrationError, SettingsError
from remint.runtime.retry import wait_until
from tests.support.ports import free_port
from tests.support.processes import command_line, ends_within
from tests.support.team import Team

VARIABLES = {"Prefect": "REMINT_PREFECT_PORT", "MLflow": "REMINT_MLFLOW_PORT", "the console": "REMINT_CONSOLE_PORT"}


@pytest.fixture
def taken() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        yield held.getsockname()[1]


@pytest.mark.parametrize("server", VARIABLES)
def test_a_taken_port_is_named_with_its_holder_and_nothing_starts(
    new_team: Team, monkeypatch: pytest.MonkeyPatch, taken: int, server: str
) -> None:
    given = {name: str(taken if each == server else free_port()) for each, name in VARIABLES.items()}
    monkeypatch.setattr(Team, "environment", lambda self, before=Team.environment: {**before(self), **given})
    done = new_team.remint("up", status=1, new=True)
    me = psutil.Process()
    line = f"error: port {taken} is taken by {me.name()} (process {me.pid}), and {server} needs it ({VARIABLES[server]}): "
    assert done.stderr == f"{line}set the variable to a free port, or stop that process\n" and done.stdout == ""
    assert not (new_team.folder / ".remint/stack.json").exists()


@pytest.mark.soak
def test_a_stack_of_which_a_part_ends_by_itself_has_failed(new_team: Team, tmp_path: Path) -> None:
    log, variables = tmp_path / "log", {name: str(free_port()) for name in VARIABLES.values()}
    up = new_team.start("up", log=log, **variables)
    try:

        def mlflow() -> list[psutil.Process]:
            found = psutil.Process(up.pid).children(recursive=True)
            return [each for each in found if variables["REMINT_MLFLOW_PORT"] in command_line(each)]

        assert wait_until(lambda: bool(mlflow()), 60, every=0.1), log.read_text()
        with closing(socket.create_server(("127.0.0.1", int(variables["REMINT_MLFLOW_PORT"])))):  # while MLflow is imported
            assert up.wait(timeout=90) == 1, log.read_text()
        assert "mlflow.1 stopped (rc=0)" in log.read_text(), "MLflow ends with status 0 if it does not get its port"
    finally:
        up.terminate()
        up.wait(timeout=60)
    assert not (new_team.folder / ".remint/stack.json").exists()


def test_both_ports_are_named_in_one_line(taken: int) -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as held:
        everywhere = held.getsockname()[1]
        with pytest.raises(OrchestrationError) as caught:
            ports.check_free({"prefect": taken, "mlflow": everywhere})
    text = str(caught.value)
    assert f"port {taken} " in text and f"port {everywhere} " in text and text.count(f"(process {os.getpid()})") == 2
    assert "\n" not in text


def test_a_holder_that_may_not_be_seen(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """A mock: the tests may run as root, which sees each process."""

    def refuse(**_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with pytest.raises(OrchestrationError, match=f"port {taken} is taken by a process that this user may not see, and MLflow"):
        ports.check_free({"mlflow": taken})


def test_a_port_is_free_again_when_its_connections_only_fade() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # this side closes first, and so keeps the port in TIME_WAIT
        client.close()
    ports.check_free({"prefect": port, "mlflow": free_port()})


@pytest.mark.parametrize("value", ["0", "65536", "-1", "http", "42.0", "²"])
def test_a_port_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("REMINT_MLFLOW_PORT", value)
    with pytest.raises(SettingsError, match=f"REMINT_MLFLOW_PORT: expected a port from 1 to 65535, not '{value}'"):
        ports.port_of("mlflow")


def test_one_port_for_two_servers_is_refused() -> None:
    with pytest.raises(SettingsError, match="^REMINT_PREFECT_PORT and REMINT_CONSOLE_PORT are the same port, 4200"):
        ports.check_free({"prefect": 4200, "mlflow": 5000, "console": 4200})


def test_settings_that_the_console_refuses_start_nothing(new_team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"REMINT_SERVE_PERSON": "X-Remote-User", **{name: str(free_port()) for name in VARIABLES.values()}}
    monkeypatch.setattr(Team, "environment", lambda self, before=Team.environment: {**before(self), **given})
    done = new_team.remint("up", status=2, new=True)
    assert done.stderr.startswith("error: REMINT_SERVE_PERSON names the header X-Remote-User") and done.stderr.count("\n") == 1
    assert "REMINT_SERVE_TOKEN" in done.stderr and not (new_team.folder / ".remint/stack.json").exists()


@pytest.mark.soak
def test_a_console_that_is_killed_is_started_again_and_nothing_else_ends(new_team: Team, tmp_path: Path) -> None:
    log, variables = tmp_path / "log", {name: str(free_port()) for name in VARIABLES.values()}
    port = variables["REMINT_CONSOLE_PORT"]
    up = new_team.start("up", log=log, **variables)

    def parts(*words: str) -> list[psutil.Process]:
        found = psutil.Process(up.pid).children(recursive=True)
        return [each for each in found if command_line(each)[1:] == ["-m", *words]]

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        return False

    try:
        assert wait_until(lambda: answers() and "Worker 'local' started" in log.read_text(), 90, every=0.2), log.read_text()
        (worker,), (console,) = parts("flows.stack.worker"), parts("flows.stack.console", port)
        console.kill()
        assert wait_until(lambda: answers() and parts("flows.stack.console", port) != [console], 60, every=0.2), log.read_text()
        assert up.poll() is None and parts("flows.stack.worker") == [worker]
        assert (new_team.folder / ".remint/stack.json").exists()
        children = psutil.Process(up.pid).children(recursive=True)
    finally:
        up.terminate()
        assert up.wait(timeout=60) == 0, log.read_text()
    assert all(ends_within(each.pid) for each in children)
