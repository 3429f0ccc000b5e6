"""The champion on new data, from end to end: remint monitor, the alarm's retraining, and the verdict that closes it."""

from __future__ import annotations

import subprocess
import sys
from uuid import UUID

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from remint.promotion import monitoring
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from tests.support.team import Team

NAME = "rows"


def write_rows(team: Team, count: int, shift: float = 0.0, *, mode: str = "w") -> None:
    x_ND = np.random.default_rng(count).normal(size=(count, 3)) + shift
    with (team.folder / "rows.csv").open(mode) as stream:
        stream.write("a,b,c\n" if mode == "w" else "")
        np.savetxt(stream, x_ND, delimiter=",", fmt="%.6f")


def make_pipeline(team: Team) -> None:
    content = read_params(team.folder)
    pipeline = content["pipelines"]["cancer-flow"]
    pipeline |= {"dataset": NAME, "evaluation": {"metrics": ["nll"]}, "triggers": {"drift": {}, "data_changed": {}}}
    pipeline["promotion"] = {"require": {"nll": {"max": 1e6}}, "improve": {"metric": "nll"}}
    content["datasets"] = {NAME: {"source": "rows.csv", "kind": "table", "split": {"validation": 0.1, "held_out": 0.2}}}
    content["pipelines"] = {NAME: pipeline}
    write_params(content, team.folder)
    team.sh("git commit -qam rows")


def start_run(team: Team, deployment: UUID) -> tuple[UUID, subprocess.Popen[bytes]]:
    """Start a run of a deployment in a process, as a worker does."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment).id
    environment = {**team.environment(), "PYTHONPATH": f"{team.folder}/src:{team.folder}", "PREFECT__FLOW_RUN_ID": str(run)}
    engine = [sys.executable, "-m", "flows.server.engine"]
    return run, subprocess.Popen(engine, cwd=team.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(team: Team, deployment: UUID, count: int = 1) -> list[str]:
    """Start runs at once. Return the names of their final states."""
    started = [start_run(team, deployment) for _ in range(count)]
    for _, process in started:
        process.wait(280)
    with get_client(sync_client=True) as client:
        return sorted(str(client.read_flow_run(run).state_name) for run, _ in started)


def test_drift_opens_one_alarm_and_a_verdict_closes_it(team: Team) -> None:
    make_pipeline(team)
    write_rows(team, 400)
    home = Home(team.folder, team.folder / ".remint")
    assert team.remint("monitor", NAME).stdout == f"{NAME} has no champion: nothing to judge yet\n"
    (first,) = team.json("run", NAME)
    assert first["decision"]["verdict"] == "promoted"
    kept = (home.path / "triggers" / NAME / "done").read_text()
    assert team.json("monitor", NAME)["state"] == "no_new_data"
    write_rows(team, 40, mode="a")
    quiet = team.json("monitor", NAME)
    assert quiet["state"] == "no_drift" and quiet["check"]["number"] == 1 and quiet["check"]["metrics"]["nll"]["n"] > 80
    assert "no new data since check 1" in team.remint("monitor", NAME).stdout
    write_rows(team, 60, shift=2.0, mode="a")

    team.remint("deploy", "--branch", "main")
    with temporary_settings({PREFECT_API_URL: team.api}):
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"monitor/{NAME}").id
        assert ended(team, found) == ["Drifted"]
        assert ended(team, found) == ["NoNewData"], "an open alarm starts no second run"
        with get_client(sync_client=True) as client:
            retrain = client.read_deployment_by_name(f"retrain/{NAME}").id
            runs = [run for run in client.read_flow_runs() if run.deployment_id == retrain]
    assert [run.parameters["reason"].partition(":")[0] for run in runs] == ["drift"]
    alarm = monitoring.open_alarm(home, NAME)
    assert alarm is not None and alarm.number == 2 and alarm.p is not None and alarm.p < alarm.level
    (second,) = team.json("run", NAME)
    assert second["decision"]["verdict"] in ("promoted", "kept", "refused") and monitoring.open_alarm(home, NAME) is None
    assert (home.path / "triggers" / NAME / "done").read_text() != kept
    assert team.json("audit") == []
    (team.folder / "rows.csv").unlink()
    gone = team.remint("monitor", NAME, status=2).stderr
    assert len([line for line in gone.splitlines() if "error:" in line]) == 1 and "there is no file" in gone


@pytest.mark.soak
def test_runs_of_a_schedule_that_were_missed_train_once(team: Team) -> None:
    """A worker that comes back starts every late run at once."""
    make_pipeline(team)
    write_rows(team, 400)
    team.remint("deploy", "--branch", "main")
    with temporary_settings({PREFECT_API_URL: team.api}):
        with get_client(sync_client=True) as client:
            retrain = client.read_deployment_by_name(f"retrain/{NAME}").id
        states = ended(team, retrain, 3)
    assert states.count("Promoted") == 1 and set(states) <= {"Promoted", "Skipped", "Unchanged"}
    assert len(team.json("history", NAME)["rows"]) == 1
