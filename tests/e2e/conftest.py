"""Fixtures of team repositories and Prefect servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from remint.runtime.home import Home
from tests.conftest import Once
from tests.support import kills, team
from tests.support.prefect_server import PrefectServer, delete_open_runs
from tests.support.promotion_cases import copy_home
from tests.support.team import Team, copy_team, make_team


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Client of a real server without deployments."""
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        for each in found.read_deployments():  # deployments of other tests on this server
            found.delete_deployment(each.id)
        yield found


@pytest.fixture(scope="session", autouse=True)
def forked_commands(programs: Path | None) -> None:
    team.forked_programs = programs


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Empty home of this working tree."""
    return Home(team.SOURCE, tmp_path / "home").ensure()


@pytest.fixture(scope="session")
def template(empty: Path, once: Once) -> Path:
    """Team with initialised databases, which take Prefect ten seconds. Tests copy it."""

    def make(folder: Path) -> None:
        team = make_team(folder)
        copy_home(Home(empty, empty), folder / ".remint")
        team.remint("init", new=True)

    return once("template", make)


@pytest.fixture(scope="session")
def cached_template(template: Path, once: Once) -> Path:
    """The template team with the digits and their features in dvc's run cache: runs of three pipelines restore them."""

    def make(folder: Path) -> None:
        shutil.copytree(template, folder, symlinks=True)
        stages = " ".join(f"features@digits-{family}" for family in ("flow", "vae", "gan"))
        Team(folder).sh(f"dvc repro --quiet {stages} && rm -r outs dvc.lock", new=False)

    return once("versed", make)


@pytest.fixture(scope="session")
def trained_template(cached_template: Path, once: Once) -> Path:
    """The cached template with a champion of each family. trained.json next to it: state before and after, and the outcomes."""

    def make(folder: Path) -> None:
        made = copy_team(cached_template, folder)
        before, outcomes, after = made.state(), made.json("run", "digits-vae", "digits-gan", "digits-flow"), made.state()
        folder.with_name("trained.json").write_text(json.dumps([before, after, outcomes]))

    return once("trained", make)


@pytest.fixture(scope="module")
def trained_team(trained_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One trained team for the tests of a module, which build on each other."""
    return copy_team(trained_template, tmp_path_factory.mktemp("trained") / "team")


@pytest.fixture
def served_team(trained_team: Team, prefect_server: str) -> Team:
    """The trained team, from now on with a running Prefect server."""
    trained_team.api = prefect_server
    return trained_team


@pytest.fixture(name="team")
def own_team(cached_template: Path, prefect_server: str, tmp_path: Path) -> Team:
    """Fresh team for one test, with a running Prefect server."""
    shutil.copytree(cached_template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team", api=prefect_server)


@pytest.fixture
def lone_team(cached_template: Path, tmp_path: Path) -> Team:
    """Fresh team for one test without a server: each run starts a temporary one."""
    shutil.copytree(cached_template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture
def new_team(template: Path, tmp_path: Path) -> Team:
    """Team without any earlier run and without a server."""
    shutil.copytree(template, tmp_path / "team", symlinks=True)
    return Team(tmp_path / "team")


@pytest.fixture(scope="module")
def shared_team(cached_template: Path, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One team for the tests of a module, which build on each other, with a running Prefect server."""
    return copy_team(cached_template, tmp_path_factory.mktemp("shared") / "team", prefect_server)


@pytest.fixture(scope="session")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """Running Prefect server, for tests that do not need a temporary one."""
    started = PrefectServer(template / ".remint/prefect", tmp_path_factory.mktemp("prefect"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def prefect_server(server: PrefectServer) -> str:
    """Address of the running Prefect server."""
    return server.url


@pytest.fixture
def stage(template: Path, tmp_path: Path, server: PrefectServer) -> kills.Stage:
    delete_open_runs(server.url)
    return kills.Stage(template, tmp_path, server)
