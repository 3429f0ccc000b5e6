"""Two pipelines at once from two terminals without a server: no lock error of git, DVC, Prefect or MLflow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.team import Team


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["lone_team", "new_team"])
def test_two_pipelines_run_at_once_without_a_lock_error(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    team: Team = request.getfixturevalue(kind)
    names = ["digits-vae", "digits-flow"]
    runs = [team.start("run", name, log=tmp_path / name, new=False) for name in names]
    for name, run in zip(names, runs, strict=True):
        assert run.wait(timeout=300) == 0, (tmp_path / name).read_text()
        text = (tmp_path / name).read_text()
        assert "locked" not in text and "promoted" in text
    assert {m["name"]: m["aliases"] for m in team.json("models")} == {name: ["champion"] for name in names}


@pytest.mark.soak
def test_a_job_runs_its_own_commits_code(team: Team, tmp_path: Path) -> None:
    """Editing the sources while a job runs changes nothing for that job."""
    run = team.start("run", "digits-vae", log=tmp_path / "log")
    jobs = team.folder / ".remint/jobs"
    while run.poll() is None and not any('"commit"' in each.read_text() for each in jobs.glob("*/job.json")):
        time.sleep(0.001)
    for path in (
        team.folder / "src/remint/models/vae.py",
        team.folder / "pipelines/train.py",
        team.folder / "pipelines/prepare.py",
    ):
        path.write_text("raise RuntimeError('the edited code was run')\n")
    assert run.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert team.json("models", "digits-vae")[0]["verdict"] == "promoted"
