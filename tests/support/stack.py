"""`remint up` in a test: a stack of real servers and a worker, and what Prefect says of its runs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from tests.support.ports import free_port
from tests.support.prefect_server import request_json
from tests.support.processes import command_line, ends_within, wait_for_value
from tests.support.team import Team

ENDLESS = ["training.steps=1000000", "training.checkpoint_every=50", "model.hidden=64", "model.layers=1"]


class Stack:
    """`remint up` of a team, with digits-vae on a schedule that does not come due.

    ``intervals``: seconds between the scheduled runs of other pipelines.
    """

    def __init__(self, team: Team, log: Path, **intervals: int) -> None:
        self.team, self.log, self.home = team, log, Home(team.folder, team.folder / ".remint")
        content = read_params(team.folder)
        content["pipelines"]["digits-vae"]["schedule"] = {"cron": "0 0 29 2 *"}
        for pipeline, seconds in intervals.items():
            content["pipelines"][pipeline]["schedule"] = {"interval": seconds}
        write_params(content, team.folder)
        team.sh("git commit -qam 'schedules'")
        self.port, self.mlflow_port, self.console_port = free_port(), free_port(), free_port()
        self.start()

    def start(self) -> None:
        ports = {"PREFECT": self.port, "MLFLOW": self.mlflow_port, "CONSOLE": self.console_port}
        self.up = self.team.start("up", log=self.log, **{f"REMINT_{name}_PORT": str(port) for name, port in ports.items()})
        self.wait_for(lambda: "Worker 'local' started" in self.log.read_text())

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        return wait_for_value(condition, seconds, 0.1, lambda: self.log.read_text()[-6000:])

    def request(self, path: str, body: Any = None) -> Any:
        """Return Prefect's answer. Retries while Prefect is busy."""
        return self.wait_for(lambda: (request_json(f"http://127.0.0.1:{self.port}/api{path}", body),))[0]

    def deployment(self, pipeline: str) -> dict[str, Any]:
        (found,) = self.request("/deployments/filter", {"deployments": {"name": {"any_": [pipeline]}}})
        return dict(found)

    def begin(self) -> str:
        """Start a run that trains until it is stopped. Return its id."""
        deployment = self.deployment("digits-vae")
        self.earlier = set(self.home.checkpoints.glob("*/step-*"))
        parameters = {**deployment["parameters"], "overrides": ENDLESS}
        body = {"parameters": parameters, "idempotency_key": str(time.monotonic())}
        return str(self.request(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state_names(self, run: str, *names: str) -> list[str]:
        """Return the run's states that have one of these names, oldest first."""
        return [each["name"] for each in self.states(run) if each["name"] in names]

    def states(self, run: str) -> list[dict[str, Any]]:
        return sorted(self.request(f"/flow_run_states/?flow_run_id={run}"), key=lambda state: str(state["timestamp"]))

    def training_processes(self) -> list[psutil.Process]:
        """Return the flow's process and its descendants once it has a checkpoint and an MLflow run; else an empty list."""
        for job in jobs.alive(self.home):
            if "mlflow_run" in job.facts and set(self.home.checkpoints.glob("*/step-*")) - self.earlier:
                flow = psutil.Process(job.facts["pid"])
                children = flow.children(recursive=True)
                if any(command_line(each)[1:3] == ["-m", "pipelines.train"] for each in children):
                    return [flow, *children]
        return []

    def mlflow(self) -> list[str]:
        query = "import sqlite3; print([s for s, in sqlite3.connect('.remint/mlflow/mlflow.db').execute('select status from runs order by start_time')])"
        return list(json.loads(self.team.sh(f'python -c "{query}"').replace("'", '"')))

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop the stack, and check that no process is left."""
        children = psutil.Process(self.up.pid).children(recursive=True)
        self.up.send_signal(sign)
        with suppress(subprocess.TimeoutExpired):
            self.up.wait(timeout=60)
        assert all_end_within(children, 30.0)


def all_end_within(processes: list[psutil.Process], seconds: float = 5.0) -> bool:
    """Return whether all processes end within some seconds. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    return all(ends_within(each.pid, max(deadline - time.monotonic(), 0.1)) for each in processes)
