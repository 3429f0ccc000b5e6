"""Clusters that a job cannot use: absent, another token, other versions, full, without GPUs. Each is one line.

tests/unit/test_params.py has the settings that are refused: `nodes: 0`, min above max, a batch below the number of ranks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import training_cases as cases
from tests.support.cluster_cases import Job
from tests.support.ray_cluster import RayCluster, ray_cluster

pytest.importorskip("ray")

CONNECT = "from remint.distributed import cluster; print(cluster.machines())"
METADATA = """
import json, os, sys
from ray._raylet import GcsClient
client, key = GcsClient(address=os.environ["REMINT_CLUSTER"]), b"CLUSTER_METADATA"
about = json.loads(client.internal_kv_get(key, b"cluster")) | json.loads(sys.argv[1])
client.internal_kv_put(key, json.dumps(about).encode(), True, b"cluster")
"""
HOLD = """
import os, ray
ray.init(address=os.environ["REMINT_CLUSTER"], log_to_driver=False)

@ray.remote(num_cpus=1)
class Held:
    def ready(self):
        return True

held = Held.remote()
ray.get(held.ready.remote())
print("held", flush=True)
input()
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A cluster of one machine, which says that it has a GPU."""
    with ray_cluster(0) as cluster:
        cluster.start_machine(0, "--num-gpus=1")
        yield cluster


def run(program: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment |= {"PYTHONPATH": cases.environment()["PYTHONPATH"]}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def error_line(environment: dict[str, str]) -> str:
    done = run(CONNECT, environment)
    assert done.returncode
    return done.stderr.strip().splitlines()[-1]


def test_no_cluster(tmp_path: Path) -> None:
    said = error_line(cases.environment() | {"REMINT_CLUSTER": "127.0.0.1:9", "RAY_AUTH_MODE": "disabled"})
    assert said.startswith("remint.errors.ResourceError: no Ray cluster answers at 127.0.0.1:9") and "ray start --head" in said


def test_a_wrong_token_and_none(head: RayCluster, tmp_path: Path) -> None:
    """Said at once: ray.init itself tries for 20 s, and names no reason."""
    environment = head.environment(0)
    said = f"remint.errors.ResourceError: the Ray cluster at {head.address} refuses this machine's token, or it has none: set RAY_AUTH_TOKEN"
    assert error_line(environment | {"RAY_AUTH_TOKEN": "f" * 64}).startswith(said)
    del environment["RAY_AUTH_TOKEN"]
    assert error_line(environment | {"HOME": str(tmp_path)}).startswith(said)


@contextmanager
def metadata(head: RayCluster, **changed: str) -> Iterator[None]:
    """Let the cluster say other versions while the block runs, in the place where its head wrote them."""
    import ray

    own = {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}
    run(METADATA, head.environment(0), json.dumps(changed)).check_returncode()
    yield
    run(METADATA, head.environment(0), json.dumps(own)).check_returncode()


@pytest.mark.soak
def test_another_version(head: RayCluster) -> None:
    with metadata(head, ray_version="2.49.0"):
        said = error_line(head.environment(0))
    assert f"the Ray cluster at {head.address} has Ray 2.49.0 and Python 3." in said and "install the same" in said
    with metadata(head, python_version="3.10.1"):
        said = error_line(head.environment(0))
    assert "and Python 3.10.1, this machine has Ray" in said and "install the same" in said
    done = run(CONNECT, head.environment(0))
    assert done.returncode == 0, done.stderr


def waiting(job: Job) -> list[tuple[str, int, int]]:
    job.wait_for("waiting")
    job.process.terminate()
    assert job.process.wait(60) != 0 and "Interrupted" in (job.home / "log").read_text()
    events = map(json.loads, job.events().splitlines())
    return [(each["needs"], each["machines"], each["free"]) for each in events if each["event"] == "waiting"]


@pytest.mark.soak
def test_a_cluster_that_is_too_small_or_full(head: RayCluster, folder: Path, tmp_path: Path) -> None:
    needs = "1 free CPU and 1 free GPU"
    assert waiting(Job(head, folder, tmp_path, "vae", (2, 2))) == [(needs, 2, 1)]
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, env=head.environment(0), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        (tmp_path / "events").unlink()
        assert waiting(Job(head, folder, tmp_path, "vae", (1, 1))) == [(needs, 1, 0)]
        holder.kill()


@pytest.mark.soak
def test_a_machine_without_gpus_among_machines_with_them(head: RayCluster, folder: Path, tmp_path: Path) -> None:
    head.start_machine(1)
    assert waiting(Job(head, folder, tmp_path, "vae", (2, 2))) == [("1 free CPU and 1 free GPU", 2, 1)]
