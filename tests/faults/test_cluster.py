"""Training over a real Ray cluster of several machines on this host: it equals one process, and a lost machine costs little.

tests/faults/test_cluster_hosts.py has machines on hosts of their own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.support import training_cases as cases
from tests.support.cluster_cases import EXACT, SOURCE, Job, assert_equal, one_process
from tests.support.ray_cluster import RayCluster, ray_cluster

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def machines() -> Iterator[RayCluster]:
    with ray_cluster(2) as cluster:
        yield cluster


@pytest.mark.soak
@pytest.mark.parametrize("case", cases.FAMILIES)
def test_two_machines_train_what_one_process_trains(machines: RayCluster, folder: Path, tmp_path: Path, case: str) -> None:
    job = Job(machines, folder, tmp_path, case, (2, 2))
    assert_equal(job.weights(), one_process(folder, tmp_path / "one", case))
    assert json.loads((tmp_path / case / "out/training.json").read_text())["world_size"] == 2
    assert '"machines": 2' in job.events() and "machine_lost" not in job.events()


@pytest.mark.soak
def test_a_killed_rank_costs_the_steps_since_the_checkpoint(machines: RayCluster, folder: Path, tmp_path: Path) -> None:
    job = Job(machines, folder, tmp_path, "vae", (2, 2), "die=20", "rank=1", f"mark={tmp_path}/died")
    assert_equal(job.weights(), one_process(folder, tmp_path / "one", "vae"))
    assert job.events().count("machine_lost") == 1
    resumed = [json.loads(line) for line in job.events().splitlines() if '"resumed"' in line]
    assert len(resumed) == 1 and resumed[0]["step"] >= 10


@pytest.mark.soak
def test_a_rollback_finds_the_checkpoint_on_every_machine(machines: RayCluster, folder: Path, tmp_path: Path) -> None:
    """Each machine has a folder of its own, and the first rank alone writes checkpoints."""
    job = Job(machines, folder, tmp_path, "vae", (2, 2), "ruin=20", checkpoint_every=1)
    ruined = [sys.executable, "tests/support/training_cases.py", str(folder), "vae"]
    settings = json.dumps(EXACT | {"checkpoint_every": 1, "home": str(tmp_path / "one")})
    subprocess.run([*ruined, settings, "ruin=20"], env=cases.environment(), cwd=SOURCE, check=True)
    assert_equal(job.weights(), load_file(tmp_path / "one/vae/out/weights.safetensors"))
    assert job.events().count("rolled_back") == 1 and "machine_lost" not in job.events()


@pytest.mark.soak
def test_a_rank_that_dies_at_each_start_ends_the_run(machines: RayCluster, folder: Path, tmp_path: Path) -> None:
    """Also where a checkpoint is there: what came with the start is no progress."""
    job = Job(machines, folder, tmp_path, "vae", (2, 2), steps=100_000)
    job.wait_for("metrics")
    job.process.terminate()
    assert job.process.wait(60) != 0 and job.kept.newest()
    again = Job(machines, folder, tmp_path, "vae", (2, 2), "die=0", "rank=1", steps=100_000)
    assert again.process.wait(300) != 0
    assert again.events().count("machine_lost") == 3
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "the training on 2 machines failed: " in last and "status -9" in last


@pytest.mark.soak
def test_a_stop_leaves_a_checkpoint_and_no_process(machines: RayCluster, folder: Path, tmp_path: Path) -> None:
    """And one process goes on from there: the checkpoints are with the job, and in the form of any training."""
    job = Job(machines, folder, tmp_path, "flow", (2, 2), steps=100_000)
    job.wait_for("metrics")
    ranks = machines.ranks()
    assert len(ranks) == 2
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(60) != 0 and "Interrupted" in (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert not alive
    newest = job.kept.newest()
    assert newest is not None and newest > 0


@pytest.mark.soak
def test_a_lost_machine_leaves_the_others_at_work(folder: Path, tmp_path: Path) -> None:
    with ray_cluster(3) as cluster:
        job = Job(cluster, folder, tmp_path, "gan", (1, 2), steps=2_000)
        job.wait_for("metrics")
        lost = next(place for place in (1, 2) if cluster.ranks(place))
        cluster.kill_machine(lost)
        began = time.monotonic()
        job.wait_for("machine_lost")
        seconds = time.monotonic() - began
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "gan", steps=2_000))
        assert seconds < 60, "Ray notices within 4 s here, and the others begin again"


@pytest.mark.soak
def test_a_lost_head_ends_the_run_with_one_line(folder: Path, tmp_path: Path) -> None:
    with ray_cluster(2) as cluster:
        job = Job(cluster, folder, tmp_path, "vae", (2, 2), steps=100_000)
        job.wait_for("metrics")
        while not job.kept.steps():
            time.sleep(0.1)
        cluster.kill_machine(0)
        assert job.process.wait(180) != 0
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "the Ray cluster was lost" in last and "run again to continue" in last
    assert job.kept.newest()
