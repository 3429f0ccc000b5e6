"""Prefect's server is killed during a run and restarted: the run completes, and each effect happens once."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_port
from tests.support.prefect_server import PrefectServer, request_json
from tests.support.processes import command_line
from tests.support.team import Team
from tests.support.trials import Trials


@pytest.mark.soak
@pytest.mark.case(9)
def test_a_run_lives_through_a_server_that_is_away(trials: Trials, cached_template: Path, tmp_path: Path) -> None:
    away = 60.0 if trials.soak else 8.0  # seconds
    server = PrefectServer(cached_template / ".remint/prefect", tmp_path / "prefect")
    try:
        for trial in trials(short=1, full=5):
            team = Team(tmp_path / str(trial.number))
            shutil.copytree(cached_template, team.folder, symlinks=True)
            log = tmp_path / f"log{trial.number}"
            run = team.start("run", "digits-flow", log=log, new=False, PREFECT_API_URL=server.url)
            doing = trial.random.choice(["versions the data", "trains", "evaluates", "registers"])
            while f"digits-flow: {doing}" not in log.read_text():
                assert run.poll() is None, log.read_text()
                time.sleep(0.05)
            time.sleep(trial.random.uniform(0.0, 0.5))
            server.kill()
            time.sleep(away)
            server.start()
            assert run.wait(timeout=600) == 0, log.read_text()
            assert [version["version"] for version in team.json("models", "digits-flow")] == [1]
            assert [row["action"] for row in team.json("history", "digits-flow")["rows"]] == ["promoted"]
            assert _states(server) == {"COMPLETED": trial.number + 1}
            trial.note(completed=1, effects_repeated=0)
    finally:
        server.stop()


@pytest.mark.soak
def test_a_killed_temporary_server_is_started_again(lone_team: Team, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = lone_team.start("run", "digits-vae", log=log)
    for moment in ("trains", "registers"):
        while f"digits-vae: {moment}" not in log.read_text():
            assert run.poll() is None, log.read_text()
            time.sleep(0.05)
        (server,) = [each for each in psutil.Process(run.pid).children() if "uvicorn" in " ".join(command_line(each))]
        server.kill()
    assert run.wait(timeout=300) == 0, log.read_text()
    assert "promoted" in log.read_text() and "ERROR" not in log.read_text()
    with sqlite3.connect(lone_team.folder / ".remint/prefect/prefect.db") as database:
        assert database.execute("SELECT state_type FROM flow_run").fetchall() == [("COMPLETED",)]


def test_an_unreachable_prefect_server_is_a_one_line_error(team: Team) -> None:
    """Prefect's client raises no error class of its own for it."""
    team.api = f"http://127.0.0.1:{free_port()}/api"
    for command in (["run", "digits-flow"], ["deploy"]):
        message = team.remint(*command, status=1).stderr
        assert f"error: Prefect's server at {team.api} cannot be reached: " in message.splitlines()[-1], message


def _states(server: PrefectServer) -> dict[str, int]:
    """Return the number of flow runs for each state type."""
    types = [run["state_type"] for run in request_json(f"{server.url}/flow_runs/filter", {})]
    return {kind: types.count(kind) for kind in types}
