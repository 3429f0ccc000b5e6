"""Teams to test with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
