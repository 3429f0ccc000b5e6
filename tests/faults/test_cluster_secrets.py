"""Secrets in the environment of a job and of its machines: Ray's logs, session folders and state have none of them (case 29)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import training_cases as cases
from tests.support.cluster_cases import Job
from tests.support.leaks import Search, make_secrets
from tests.support.ports import free_port
from tests.support.ray_cluster import ray_cluster
from tests.support.trials import Trials

pytest.importorskip("ray")
pytestmark = pytest.mark.soak

NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "REMINT_LEDGER", "PREFECT_API_KEY")
# All that `ray list` and the dashboard show, and the table behind them.
STATE = """
import os, sys
import ray
from ray.util import state
ray.init(address=os.environ["REMINT_CLUSTER"], log_to_driver=False)
for name in ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers"):
    print(name, getattr(state, f"list_{name}")(address=sys.argv[1], limit=10_000, detail=True, raise_on_missing_output=False))
client = ray._private.worker.global_worker.gcs_client
for space in (None, b"cluster", b"session", b"job", b"fun", b"dashboard", b"healthcheck", b"tracing", b"serve"):
    for key in client.internal_kv_keys(b"", space):
        print(space, key, client.internal_kv_get(key, space))
"""


@pytest.mark.case(29)
def test_ray_keeps_no_secret_of_a_job_or_a_machine(trials: Trials, folder: Path, tmp_path: Path) -> None:
    for trial in trials(short=1, full=1):
        planted = make_secrets(trial.random, NAMES)
        dashboard = free_port()
        with ray_cluster(0, **planted) as cluster:
            cluster.start_machine(0, "--include-dashboard=true", f"--dashboard-port={dashboard}")
            cluster.start_machine(1)
            job = Job(cluster, folder, tmp_path, "vae", (2, 2))
            job.weights()
            environment = cluster.environment(0) | {"PYTHONPATH": cases.environment()["PYTHONPATH"]}
            command = [sys.executable, "-c", STATE, f"http://127.0.0.1:{dashboard}"]
            state = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert state.returncode == 0, state.stderr
            search = Search([*planted.values(), cluster.token, "TrainController"])
            search.texts("state", state.stdout, state.stderr)
            in_state = bool(search.found["TrainController"])
            search.tree(cluster.folder)
            search.tree(tmp_path)
        places = search.found.pop("TrainController")
        assert in_state and len(places) > 1 and search.places > 50, "the search finds what is there"
        assert not any(search.found.values()), search.found
        trial.note(found=sum(map(len, search.found.values())), places=search.places)
