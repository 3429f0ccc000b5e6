"""Installation of several hosts in a test: workers of work pools, each with a folder and a home of its own, and shared stores.

A git repository, a DVC remote, MLflow, a ledger and a Prefect server are all that the hosts share. Only the person has a clone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from tests.support.prefect_server import request_json
from tests.support.processes import command_line, wait_for_value
from tests.support.promotion_cases import copy_home
from tests.support.stack import all_end_within
from tests.support.team import REMINT, SMALL, Team

PIPELINE = "digits-flow"


@dataclass
class Host:
    """A host with a worker of one pool. It has no clone."""

    pool: str
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Home:
        return Home(self.folder, self.folder / "home")

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [REMINT, "worker", "--pool", self.pool], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Stop the worker, and check that no process is left."""
        if self.process is not None and self.process.poll() is None:
            tree = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            self.process.wait(timeout=90)
            assert all_end_within(tree, 30.0)

    def kill(self) -> None:
        """Kill everything at once, as a loss of power."""
        assert self.process is not None
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for each in tree:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        assert all_end_within(tree)

    def flows(self) -> list[psutil.Process]:
        """Return the processes of the flow runs that this worker started."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if command_line(each)[1:3] == ["-m", "flows.server.engine"]]

    def step_processes(self, step: str) -> list[psutil.Process]:
        """Return the flow's process and its descendants, once a step runs here."""
        for job in jobs.alive(self.home):
            with suppress(psutil.Error, KeyError):
                flow = psutil.Process(job.facts["pid"])
                tree = [flow, *flow.children(recursive=True)]
                if any(command_line(each)[1:3] == ["-m", f"pipelines.{step}"] for each in tree):
                    return tree
        return []


@dataclass
class Installation:
    """The person's clone, the shared stores and the hosts."""

    team: Team
    folder: Path
    address: str  # of Prefect's API
    hosts: dict[str, Host] = field(default_factory=dict)
    earlier: set[Path] = field(default_factory=set)  # checkpoints, before the run that began last

    @classmethod
    def make(cls, template: Path, folder: Path, address: str, **resources: Any) -> Installation:
        """Make an installation with one pipeline, which trains in a second. ``resources``: of the pipeline."""
        shutil.copytree(
            template, folder / "clone", symlinks=True, ignore=lambda path, _: {".remint"} if path == str(template) else set()
        )
        copy_home(Home(template, template / ".remint"), folder / "stores")
        team = Team(folder / "clone", api=address)
        content = read_params(team.folder)
        pipeline = content["pipelines"][PIPELINE]
        pipeline["model"] |= SMALL["flow"]
        pipeline["evaluation"] = {"metrics": ["nll"], "draws": 8, "samples": 64}
        pipeline["promotion"] = {"require": {"nll": {"max": 1e6}}, "improve": {"metric": "nll"}}
        pipeline |= {"resources": resources, "schedule": {"cron": "0 0 29 2 *"}}
        content["pipelines"] = {PIPELINE: pipeline}
        write_params(content, team.folder)
        made = cls(team, folder, address)
        team.environment = lambda: made.environment(folder / "clone/.remint")  # type: ignore[method-assign]
        team.sh('git commit -qam pools && git clone -q --bare . ../origin.git && git remote add origin "$PWD/../origin.git"')
        return made

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process with a home, on any host."""
        stores = self.folder / "stores"
        return {
            **Team.environment(self.team),
            "REMINT_HOME": str(home),
            "REMINT_DVC_REMOTE": str(self.folder / "remote"),
            "REMINT_ARTIFACTS": str(self.folder / "artifacts"),
            "REMINT_LEDGER": f"sqlite:///{stores}/ledger.db",
            "MLFLOW_TRACKING_URI": f"sqlite:///{stores}/mlflow/mlflow.db",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "3",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def host(self, name: str, pool: str, **more: str) -> Host:
        """Start the worker of another host. ``more``: environment."""
        folder = self.folder / name
        host = self.hosts[name] = Host(pool, folder, {**self.environment(folder / "home"), **more})
        host.start()
        return host

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        return wait_for_value(condition, seconds, 0.2, self._logs)

    def _logs(self) -> str:
        return "\n".join([f"== {name}\n{host.log[-5000:]}" for name, host in self.hosts.items()])

    def request(self, path: str, body: Any = None) -> Any:
        return request_json(f"{self.address}{path}", body)

    def checkpoints(self, place: Path) -> set[Path]:
        """Return the whole checkpoints below a place that are new since the last run began."""
        return set(place.glob("checkpoints/*/checkpoints/*/step-*/manifest.json")) - self.earlier

    def note_checkpoints(self) -> None:
        places = [self.folder / "remote", *(host.home.path for host in self.hosts.values())]
        self.earlier |= {path for place in places for path in self.checkpoints(place)}

    def begin(self, *overrides: str) -> str:
        """Start a run of the deployed retraining. Return its id."""
        self.note_checkpoints()
        (found,) = self.request("/deployments/filter", {"deployments": {"name": {"any_": [PIPELINE]}}})
        parameters = {**found["parameters"], "overrides": list(overrides)}
        return str(self.request(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.request(f"/flow_runs/{run}")["state"])

    def ended(self, run: str, *others: str, seconds: float = 240.0) -> str:
        """Wait until a run has ended in another state than ``others``. Return the state's name."""

        def state() -> str:
            now = self.state(run)
            over = now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") and now["name"] not in others
            return str(now["name"]) if over else ""

        return str(self.wait_for(state, seconds))

    def steps(self) -> list[dict[str, Any]]:
        """Return the runs of steps on pools, the oldest first."""
        found = self.request("/flow_runs/filter", {"flows": {"name": {"any_": ["step"]}}, "sort": "START_TIME_ASC"})
        return sorted(found, key=lambda run: str(run["created"]))

    def logs(self, run: str) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [str(line["message"]) for line in self.request("/logs/filter", wanted)]

    def stop(self) -> None:
        for host in self.hosts.values():
            host.stop()
