"""A clone below a folder whose name holds every printable ASCII sign but the colon, and three scripts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.paths import HOSTILE
from tests.support.team import Team


def assert_nothing_is_outside(team: Team, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir()] == [HOSTILE]
    assert [path.name for path in (tmp_path / HOSTILE).iterdir()] == ["team"]
    assert team.sh("git status --porcelain --untracked-files=all") == ""
    made = {str(path.relative_to(team.folder / ".remint")) for path in (team.folder / ".remint").glob("*/*")}
    assert {"dvc/cache", "dvc/remote", "dvc/site", "mlflow/artifacts", "mlflow/mlflow.db", "prefect/prefect.db"} <= made


def test_a_run_writes_nothing_outside_the_clone(cached_template: Path, prefect_server: str, tmp_path: Path) -> None:
    team = Team(tmp_path / HOSTILE / "team", api=prefect_server)
    shutil.copytree(cached_template, team.folder, symlinks=True)
    (outcome,) = team.json("run", "digits-flow")
    assert outcome["decision"]["verdict"] == "promoted"
    assert_nothing_is_outside(team, tmp_path)


@pytest.mark.soak
def test_commands_write_nothing_outside_the_clone(template: Path, tmp_path: Path) -> None:
    team = Team(tmp_path / HOSTILE / "team")
    shutil.copytree(template, team.folder, symlinks=True, ignore=shutil.ignore_patterns(".remint"))
    team.remint("init")
    team.remint("run", "cancer-flow", "digits-vae")
    assert "nothing was trained" in team.remint("run", "cancer-flow").stdout
    team.remint("rebuild", "cancer-flow/1")
    team.remint("deploy")
    team.remint("sample", "cancer-flow", "-n", "2", "-o", str(team.folder / ".remint/rows.csv"))
    team.remint("gc", "--older-than", "0", "--apply")
    team.remint("audit", "--deep")
    assert_nothing_is_outside(team, tmp_path)


def test_a_clone_below_a_folder_with_a_colon_is_refused_in_one_line(tmp_path: Path) -> None:
    team = Team(tmp_path / "a:b")
    team.folder.mkdir()
    team.sh("git init -q && git -c user.name=a -c user.email=a@example.org commit -q --allow-empty -m first")
    for command in ("init", "doctor"):
        error = team.remint(command, status=2).stderr
        assert (
            error == f"error: the path {team.folder} cannot be used (a colon divides the folders of PYTHONPATH): move the clone\n"
        )
    assert [path.name for path in team.folder.iterdir()] == [".git"]
