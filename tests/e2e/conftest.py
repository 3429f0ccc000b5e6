"""Teams to test with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Once
from tests.support import kills, team
from tests.support.prefect_server import PrefectServer
from tests.support.team import Team, copy_team, make_team


@pytest.fixture(scope="session", autouse=True)
def forked_commands(programs: Path | None) -> None:
    team.forked = programs


@pytest.fixture(scope="session")
def template(once: Once) -> Path:
    """A team with its databases made, to be copied: making them takes Prefect ten seconds."""
    return once("template", lambda folder: make_team(folder).remint("init", new=True))


@pytest.fixture(scope="session")
def versed(template: Path, once: Once) -> Path:
    """That team, whose dvc remembers the digits and their features: runs of its three pipelines restore them."""

    def make(folder: Path) -> None:
        shutil.copytree(template, folder, symlinks=True)
        stages = " ".join(f"features@digits-{family}" for family in ("flow", "vae", "gan"))
        Team(folder).sh(f"dvc repro --quiet {stages} && rm -r outs dvc.lock")

    return once("versed", make)


@pytest.fixture(scope="session")
def trained(versed: Path, once: Once) -> Path:
    """That team with a champion of each family. trained.json beside it: the team's state before and after, and the outcomes."""

    def make(folder: Path) -> None:
        made = copy_team(versed, folder)
        before, outcomes, after = made.state(), made.json("run", "digits-vae", "digits-gan", "digits-flow"), made.state()
        folder.with_name("trained.json").write_text(json.dumps([before, after, outcomes]))

    return once("trained", make)


@pytest.fixture(scope="module")
def trained_team(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One team that has trained, for the tests of a module that go on from one another."""
    return copy_team(trained, tmp_path_factory.mktemp("trained") / "team")


@pytest.fixture
def served_team(trained_team: Team, prefect_server: str) -> Team:
    """That team, from now on with a server that is up."""
    trained_team.api = prefect_server
    return trained_team


@pytest.fixture(name="team")
def own_team(versed: Path, prefect_server: str, tmp_path: Path) -> Team:
    """A fresh team of one's own, with a Prefect server that is up."""
    shutil.copytree(versed, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team", api=prefect_server)


@pytest.fixture
def lone_team(versed: Path, tmp_path: Path) -> Team:
    """A fresh team of one's own where no server is up: each run starts a temporary one."""
    shutil.copytree(versed, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture
def new_team(template: Path, tmp_path: Path) -> Team:
    """A team where nothing ran before, and no server is up."""
    shutil.copytree(template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture(scope="module")
def shared_team(versed: Path, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One team for the tests of a module that go on from one another, with a Prefect server that is up."""
    return copy_team(versed, tmp_path_factory.mktemp("shared") / "team", prefect_server)


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
def stage(template: Path, tmp_path: Path, server: PrefectServer) -> kills.Stage:
    return kills.Stage(template, tmp_path, server)
