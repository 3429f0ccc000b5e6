"""Teams to test with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import server
from tests.e2e.team import Team, make_team


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team with its databases made, to be copied: making them takes Prefect ten seconds."""
    team = make_team(tmp_path_factory.mktemp("template") / "team")
    team.remint("init")
    return team.folder


@pytest.fixture
def team(template: Path, tmp_path: Path) -> Team:
    """A fresh team of one's own."""
    shutil.copytree(template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture(scope="module")
def shared_team(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One team for the tests of a module that go on from one another."""
    folder = tmp_path_factory.mktemp("shared") / "team"
    shutil.copytree(template, folder, symlinks=True)
    return Team(folder)


@pytest.fixture(scope="session")
def prefect_server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server that is up, for runs that need not show that they start one of their own."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copytree(template / ".remint/prefect", home, dirs_exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_UI_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/api"
        server.wait_healthy(url, started, home / "log")
        yield url
    finally:
        started.terminate()
        started.wait(timeout=60)


@pytest.fixture
def served_team(shared_team: Team, prefect_server: str) -> Team:
    """The module's team, from now on with a server that is up."""
    shared_team.api = prefect_server
    return shared_team
