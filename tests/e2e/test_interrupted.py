"""Ctrl-C in the middle of a training: no child is left, the next run goes on from the checkpoint. test_kills.py has SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.e2e.team import Team

LONG = [
    *("run", "digits-vae", "--set", "training.steps=2000", "--set", "training.checkpoint_every=50"),
    *("--set", "model.hidden=64", "--set", "model.layers=1"),  # many steps in little time
]


def hold_at_checkpoint(team: Team, run: subprocess.Popen[bytes]) -> psutil.Process:
    """Stops the trainer once it has written a checkpoint, lest a fast machine finishes before the kill, and waits for its MLflow run."""
    deadline = time.monotonic() + 120
    home = team.folder / ".remint"
    while not list(home.glob("checkpoints/*/step-*")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    (trainer,) = (child for child in children if child.cmdline()[1:3] == ["-m", "pipelines.train"])
    trainer.suspend()
    while not any("mlflow_run" in path.read_text() for path in home.glob("jobs/*/job.json")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return trainer


def states(team: Team) -> tuple[list[list[str]], list[list[str]]]:
    """Prefect's flow runs and MLflow's runs: state, and what is said of it."""
    script = (
        "import sqlite3, json;"
        "p = sqlite3.connect('.remint/prefect/prefect.db').execute('select s.type, s.message from flow_run r join flow_run_state s on r.state_id = s.id order by r.created').fetchall();"
        "m = sqlite3.connect('.remint/mlflow/mlflow.db').execute('select status, name from runs order by start_time').fetchall();"
        "print(json.dumps([p, m]))"
    )
    prefect, mlflow = json.loads(team.sh(f'python -c "{script}"'))
    return prefect, mlflow


def test_stopped_in_mid_training_and_taken_up_again(lone_team: Team, tmp_path: Path) -> None:
    run = lone_team.start(*LONG, log=tmp_path / "log")
    trainer = hold_at_checkpoint(lone_team, run)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    trainer.resume()  # it finishes its step, then
    assert run.wait(timeout=60) == 1
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert "run the same command again" in (tmp_path / "log").read_text()
    steps = [int(path.name.removeprefix("step-")) for path in (lone_team.folder / ".remint/checkpoints").glob("*/step-*")]

    done = lone_team.remint(*LONG, "--json")
    (outcome,) = json.loads(done.stdout)
    assert outcome["trained"] and outcome["version"] == 1
    first_seen = (lone_team.folder / ".remint").glob("jobs/*/train.jsonl")
    events = [json.loads(line) for path in sorted(first_seen)[-1:] for line in path.read_text().splitlines()]
    assert min(event["step"] for event in events if "step" in event and isinstance(event["step"], int)) >= max(steps)
    prefect, mlflow = states(lone_team)
    assert [state for state, _ in prefect] == ["FAILED", "COMPLETED"] and "interrupted" in prefect[0][1]
    assert [status for status, _ in mlflow] == ["KILLED", "FINISHED"]
    assert not list((lone_team.folder / ".remint/workspaces").glob("*"))
