"""Teams to test with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import kills
from tests.support.prefect_server import PrefectServer
from tests.support.team import Team, make_team


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team with its databases made, to be copied: making them takes Prefect ten seconds."""
    team = make_team(tmp_path_factory.mktemp("template") / "team")
    team.remint("init")
    return team.folder


@pytest.fixture(scope="session")
def versed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That team, whose dvc remembers the digits and their features: runs of its three pipelines restore them."""
    folder = tmp_path_factory.mktemp("versed") / "team"
    shutil.copytree(template, folder, symlinks=True)
    stages = " ".join(f"features@digits-{family}" for family in ("flow", "vae", "gan"))
    Team(folder).sh(f"dvc repro --quiet {stages} && rm -r outs dvc.lock")
    return folder


@pytest.fixture
def team(versed: Path, prefect_server: str, tmp_path: Path) -> Team:
    """A fresh team of one's own, with a Prefect server that is up."""
    shutil.copytree(versed, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team", api=prefect_server)


@pytest.fixture
def lone_team(template: Path, tmp_path: Path) -> Team:
    """A fresh team where nothing ran before and no server is up: each run starts a temporary one."""
    shutil.copytree(template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture(scope="module")
def shared_team(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One team for the tests of a module that go on from one another."""
    folder = tmp_path_factory.mktemp("shared") / "team"
    shutil.copytree(template, folder, symlinks=True)
    return Team(folder)


@pytest.fixture(scope="session")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server that is up, for runs that need not show that they start one of their own."""
    started = PrefectServer(template / ".remint/prefect", tmp_path_factory.mktemp("prefect"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def prefect_server(server: PrefectServer) -> str:
    """The address of that server."""
    return server.url


@pytest.fixture
def served_team(shared_team: Team, prefect_server: str) -> Team:
    """The module's team, from now on with a server that is up."""
    shared_team.api = prefect_server
    return shared_team


@pytest.fixture
def stage(template: Path, tmp_path: Path, server: PrefectServer) -> kills.Stage:
    return kills.Stage(template, tmp_path, server)
