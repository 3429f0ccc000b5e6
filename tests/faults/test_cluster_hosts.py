"""Training over a Ray cluster of hosts with addresses of their own, on networks that lose, delay and end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch

from tests.support import training_cases as cases
from tests.support.cluster_cases import Job, assert_equal, one_process
from tests.support.hosts import hosts
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.trials import Trial, Trials

pytest.importorskip("ray")
LONG = {"steps": 800, "checkpoint_every": 25, "validate_every": 100}  # long enough for a fault in mid-training


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[RayCluster]:
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        yield cluster


def test_a_killed_rank_and_a_killed_host_cost_only_steps(two_hosts: RayCluster, folder: Path, tmp_path: Path) -> None:
    job = Job(two_hosts, folder, tmp_path, "vae", (1, 2), **LONG)
    job.wait_for("checkpoint")
    two_hosts.ranks(1)[0].kill()
    job.wait_for("machine_lost")
    job.wait_for("resumed")
    two_hosts.kill_machine(1)
    assert_equal(job.weights(), one_process(folder, tmp_path / "one", "vae", **LONG))
    assert job.machines() == [2, 2, 1]
    two_hosts.start_machine(1)


@pytest.mark.soak
@pytest.mark.parametrize("case", cases.FAMILIES)
def test_two_hosts_train_what_one_process_trains(two_hosts: RayCluster, folder: Path, tmp_path: Path, case: str) -> None:
    job = Job(two_hosts, folder, tmp_path, case, (2, 2))
    assert_equal(job.weights(), one_process(folder, tmp_path / "one", case))
    assert job.machines() == [2]


@pytest.mark.soak
def test_three_hosts_train_what_one_process_trains(folder: Path, tmp_path: Path) -> None:
    with hosts(3) as made, ray_cluster(3, made) as cluster:
        job = Job(cluster, folder, tmp_path, "vae", (3, 3))
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "vae"))
        assert job.machines() == [3]


@pytest.mark.soak
def test_a_host_that_is_cut_off_is_done_without(folder: Path, tmp_path: Path) -> None:
    """Its own ranks end when they have not heard of the job for a minute (node.UNHEARD)."""
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        job = Job(cluster, folder, tmp_path, "vae", (1, 2), **LONG)
        job.wait_for("checkpoint")
        here, there = cluster.ranks(0), cluster.ranks(1)
        assert len(here) == len(there) == 1
        made.cut(1)
        began = time.monotonic()
        psutil.wait_procs(here, timeout=60)
        noticed = time.monotonic() - began
        goes_on = job.wait_for("machine_lost") + noticed
        _, alive = psutil.wait_procs(there, timeout=90)
        print(f"noticed after {noticed:.1f} s, went on after {goes_on:.1f} s, ranks ended after {time.monotonic() - began:.1f} s")
        assert not alive
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "vae", **LONG))
        assert job.machines() == [2, 1]


@pytest.mark.soak
def test_a_training_of_a_fixed_size_waits_for_a_host_that_was_cut_off(folder: Path, tmp_path: Path) -> None:
    """Ray never takes back a machine that it gave up: its ray start ends, and is started again, as a service is."""
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        job = Job(cluster, folder, tmp_path, "flow", (2, 2), **LONG)
        job.wait_for("checkpoint")
        here = cluster.ranks(0)
        made.cut(1)
        _, alive = psutil.wait_procs(here, timeout=60)
        assert not alive
        made.mend(1)
        cluster.machines[1].wait(120)
        cluster.start_machine(1)
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "flow", **LONG))
        assert job.machines() == [2, 2]


@pytest.mark.soak
def test_a_short_cut_costs_nothing(two_hosts: RayCluster, folder: Path, tmp_path: Path) -> None:
    """TCP sends again."""
    job = Job(two_hosts, folder, tmp_path, "gan", (2, 2), **LONG)
    job.wait_for("checkpoint")
    assert two_hosts.hosts
    two_hosts.hosts.cut(1)
    time.sleep(2.0)
    two_hosts.hosts.mend(1)
    assert_equal(job.weights(), one_process(folder, tmp_path / "one", "gan", **LONG))
    assert job.machines() == [2]


@pytest.mark.soak
def test_a_stop_after_a_cut_ends_the_job_and_every_rank(folder: Path, tmp_path: Path) -> None:
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        job = Job(cluster, folder, tmp_path, "vae", (2, 2), steps=100_000)
        job.wait_for("checkpoint")
        here, there = cluster.ranks(0), cluster.ranks(1)
        made.cut(1)
        job.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert job.process.wait(60) != 0 and "Interrupted" in (tmp_path / "log").read_text()
        ended = time.monotonic() - began
        _, alive = psutil.wait_procs(here, timeout=5)
        assert not alive and job.kept.newest()
        _, alive = psutil.wait_procs(there, timeout=90)
        print(f"the job ended after {ended:.1f} s, the ranks of the cut host after {time.monotonic() - began:.1f} s")
        assert not alive


@pytest.mark.soak
def test_lost_packets_change_nothing(folder: Path, tmp_path: Path) -> None:
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        made.lose(1, 0.01)
        job = Job(cluster, folder, tmp_path, "vaegan", (2, 2))
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "vaegan"))
        print(f"{made.lost(1)} packets were lost")
        assert made.lost(1) and job.machines() == [2]


@pytest.mark.soak
def test_a_slow_link_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """100 ms each way."""
    with hosts(2, delay=0.1) as made, ray_cluster(2, made) as cluster:
        job = Job(cluster, folder, tmp_path, "pixelcnn", (2, 2))
        assert_equal(job.weights(), one_process(folder, tmp_path / "one", "pixelcnn"))
        assert job.machines() == [2]


@pytest.mark.soak
@pytest.mark.case(36)
def test_seeded_kills_over_two_hosts_cost_only_steps(trials: Trials, folder: Path, tmp_path: Path) -> None:
    with hosts(2) as made, ray_cluster(2, made) as cluster:
        for trial in trials(short=2, full=20):
            _kill_once(trial, cluster, folder, tmp_path / str(trial.number))


@cache
def _expected(folder: Path, home: Path, case: str) -> dict[str, torch.Tensor]:
    return one_process(folder, home, case, **LONG)


def _kill_once(trial: Trial, cluster: RayCluster, folder: Path, home: Path) -> None:
    """Train a random family, and kill a random rank, or the second host: the first has the job and the head."""
    home.mkdir()
    case, victim, least = trial.random.choice(cases.FAMILIES), trial.random.choice(("rank", "host")), trial.random.choice((1, 2))
    job = Job(cluster, folder, home, case, (least, 2), **LONG)
    job.wait_for("checkpoint")
    time.sleep(trial.random.random())
    late = job.process.poll() is not None or not cluster.ranks()
    if victim == "host":
        cluster.kill_machine(1)
        if least == 2:
            cluster.start_machine(1)
    elif not late:
        trial.random.choice(cluster.ranks()).kill()
    assert_equal(job.weights(), _expected(folder, home.parent / case, case))
    assert late or len(job.machines()) > 1, job.machines()
    trial.note(**{f"killed_{victim}s": 1, "after_the_end": late})
    if cluster.machines[1].poll() is not None:
        cluster.start_machine(1)
