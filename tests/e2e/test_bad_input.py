"""Bad input is a one-line error with exit status 2; a failed run is one with exit status 1. Nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from remint.settings.params import read_params, write_params
from tests.support.team import Team


def error_line(team: Team, *arguments: str, status: int = 2, cwd: Path | None = None) -> str:
    done = team.remint(*arguments, status=status, cwd=cwd)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.stdout == ""
    return line


def test_unknown_names_and_keys_are_refused_before_a_job_starts(team: Team) -> None:
    assert "unknown pipeline 'digit-vae': did you mean 'digits-vae'?" in error_line(team, "run", "digit-vae")
    assert "pipelines.digits-vae.training: unknown key 'step': did you mean 'steps'?" in error_line(
        team, "run", "digits-vae", "--set", "training.step=3"
    )
    assert "pipelines.digits-vae.training.steps" in error_line(team, "run", "digits-vae", "--set", "training.steps=three")
    content = read_params(team.folder)
    content["pipelines"]["digits-gan"]["trainning"] = {}
    write_params(content, team.folder)
    assert "did you mean 'training'?" in error_line(team, "models")
    assert not list((team.folder / ".remint").glob("jobs/*"))


def test_commands_name_a_model_that_does_not_exist(team: Team) -> None:
    for command in (["why", "digits-vae"], ["history", "digits-vae"], ["models", "digits-vae"], ["sample", "digits-vae"]):
        assert "digits-vae" in error_line(team, *command)


def test_a_missing_repository_or_commit_is_an_error(team: Team, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no git repository at" in error_line(team, "run", "digits-vae", cwd=empty)
    team.sh(f"git init -q {empty}")
    assert "has no commit yet" in error_line(team, "run", "digits-vae", cwd=empty)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("empty", np.zeros((0, 1, 8, 8), np.uint8), ["datasets.digits.source", "empty"]),
        ("nan", np.full((50, 1, 8, 8), np.nan, np.float32), ["datasets.digits.source", "nan is not a finite number"]),
        ("shape", np.zeros((50, 1, 9, 9), np.uint8), ["datasets.digits", "9"]),
    ],
)
def test_a_broken_dataset_is_refused_and_the_champion_stays(team: Team, name: str, array: np.ndarray, words: list[str]) -> None:
    data = team.folder / "outs" / f"{name}.npy"  # ignored by git, as data is
    data.parent.mkdir()
    np.save(data, array)
    content = read_params(team.folder)
    content["datasets"]["digits"]["source"] = f"outs/{name}.npy"
    write_params(content, team.folder)
    team.sh("git commit -qam 'another source'")
    line = error_line(team, "run", "digits-flow")
    for word in words:
        assert word in line


def test_a_family_that_cannot_take_missing_values_is_refused_before_anything_is_learnt(team: Team) -> None:
    home = team.folder / ".remint"
    before = {path for name in ("features", "checkpoints") for path in home.glob(f"{name}/*")}
    (team.folder / "data").mkdir()
    rows = [f"{n},{0.1 * n:.1f},{'?' if n % 9 == 0 else n % 7}" for n in range(100)]
    (team.folder / "data/gaps.csv").write_text("\n".join(["index,a,b", *rows]) + "\n")
    content = read_params(team.folder)
    content["datasets"]["gaps"] = {"source": "data/gaps.csv", "kind": "table"}
    content["pipelines"]["digits-flow"]["dataset"] = "gaps"
    write_params(content, team.folder)
    expected = "params.yaml: pipelines.digits-flow.family: flow cannot take missing values, but column b may lack some: "
    printed = team.remint("run", "digits-flow", status=2).stderr
    assert expected in printed, "right after the import"
    assert "digits-flow: column index: left out: the index of the saved frame, and no measurement\n" in printed
    assert "digits-flow: column b: missing where a cell holds ? (setting placeholders)\n" in printed
    assert {path for name in ("features", "checkpoints") for path in home.glob(f"{name}/*")} == before
    line = error_line(team, "run", "digits-flow")
    assert line.startswith(f"error: {expected}"), "refused before a job starts, by the schema that the import left"


def test_more_devices_than_the_machine_has_are_refused(team: Team) -> None:
    line = error_line(team, "run", "digits-flow", "--set", "training.devices=64")
    assert "pipelines.digits-flow.training.devices: 64" in line and "this machine has" in line


def test_prefect_and_mlflow_record_a_failed_run(lone_team: Team) -> None:
    error_line(lone_team, "run", "digits-flow", "--set", "training.learning_rate=1.0e+30", "--set", "training.steps=20", status=1)
    done = lone_team.sh(
        "python -c \"import sqlite3, json; c = sqlite3.connect('.remint/prefect/prefect.db');"
        "print(json.dumps(c.execute('select s.type, s.message from flow_run r join flow_run_state s on r.state_id = s.id').fetchall()))\""
    )
    (state,) = json.loads(done)
    assert state[0] == "FAILED" and "diverged" in state[1]
    done = lone_team.sh(
        "python -c \"import sqlite3, json; print(json.dumps(sqlite3.connect('.remint/mlflow/mlflow.db').execute('select status from runs').fetchall()))\""
    )
    assert json.loads(done) == [["FAILED"]]
    assert not list((lone_team.folder / ".remint/workspaces").glob("*"))
