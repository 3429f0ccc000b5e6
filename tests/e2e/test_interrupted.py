"""Ctrl-C during a training: no child process is left, and the next run resumes from the checkpoint. SIGKILL: test_kills.py."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.prefect_server import request_json
from tests.support.processes import command_line, descendants
from tests.support.team import Team

LONG = [
    *("run", "digits-vae", "--set", "training.steps=2000", "--set", "training.checkpoint_every=50"),
    *("--set", "model.hidden=64", "--set", "model.layers=1"),  # many steps in little time
]


def hold_at_checkpoint(team: Team, run: subprocess.Popen[bytes]) -> psutil.Process:
    """Suspend the trainer after its first checkpoint, so that it cannot finish early, and wait for its MLflow run."""
    deadline = time.monotonic() + 120
    home = team.folder / ".remint"
    while not list(home.glob("checkpoints/*/step-*")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (trainer,) = (child for child in descendants(run.pid) if command_line(child)[1:3] == ["-m", "pipelines.train"])
    trainer.suspend()
    while not any("mlflow_run" in path.read_text() for path in home.glob("jobs/*/job.json")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return trainer


def job_states(team: Team) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the state and message of each job in Prefect, and the status of each run in MLflow."""
    prefect = []
    for job in sorted(team.folder.glob(".remint/jobs/*/job.json")):
        state = request_json(f"{team.api}/flow_runs/{json.loads(job.read_text())['flow_run']}")["state"]
        prefect.append((state["type"], state["message"]))
    with sqlite3.connect(team.folder / ".remint/mlflow/mlflow.db") as database:
        return prefect, [status for (status,) in database.execute("SELECT status FROM runs ORDER BY start_time")]


@pytest.mark.soak
def test_ctrl_c_stops_a_training_and_the_next_run_resumes_it(team: Team, tmp_path: Path) -> None:
    run = team.start(*LONG, log=tmp_path / "log")
    trainer = hold_at_checkpoint(team, run)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    trainer.resume()  # it finishes its step and stops
    assert run.wait(timeout=60) == 1
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert "run the same command again" in (tmp_path / "log").read_text()
    steps = [int(path.name.removeprefix("step-")) for path in (team.folder / ".remint/checkpoints").glob("*/step-*")]

    done = team.remint(*LONG, "--json")
    (outcome,) = json.loads(done.stdout)
    assert outcome["trained"] and outcome["version"] == 1
    first_seen = (team.folder / ".remint").glob("jobs/*/train.jsonl")
    events = [json.loads(line) for path in sorted(first_seen)[-1:] for line in path.read_text().splitlines()]
    assert min(event["step"] for event in events if "step" in event and isinstance(event["step"], int)) >= max(steps)
    prefect, mlflow = job_states(team)
    assert [state for state, _ in prefect] == ["FAILED", "COMPLETED"] and "interrupted" in prefect[0][1]
    assert mlflow == ["KILLED", "FINISHED"]
    assert not list((team.folder / ".remint/workspaces").glob("*"))
