"""The file of deploy/slurm, run by a real Slurm: two nodes train what one process trains, and a stopped training goes on."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.slurm import Slurm, slurm
from tests.support.team import Team, copy_team

pytest.importorskip("ray")
pytestmark = pytest.mark.soak
EXACT = ("--set", "training.precision=fp64")
LONG = ("--set", "training.steps=600", "--set", "training.checkpoint_every=50")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Slurm]:
    with slurm(2) as made:
        yield made


class Job:
    """A submitted job of a team. Its output lies in the clone."""

    def __init__(self, cluster: Slurm, team: Team, *options: str, remote: str = "remote") -> None:
        self.cluster, self.team = cluster, team
        own = {
            "REMINT_DVC_REMOTE": str(team.folder.parent / remote) if remote else "",
            "REMINT_NODE_CACHE": str(cluster.disk / "cache"),
            "RAY_TMPDIR": str(cluster.disk),
        }
        submit = ["sbatch", "--parsable", "deploy/slurm/retrain.sbatch", "digits-vae", *options]
        self.number = cluster.run(*submit, cwd=team.folder, **team.environment(), **own).strip()
        self.own = team.folder / ".remint/slurm" / self.number

    def said(self) -> str:
        log = self.team.folder / f"slurm-{self.number}.out"
        return log.read_text() if log.exists() else ""

    def wait_for(self, pattern: str, seconds: float = 600.0) -> str:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said())):
            assert self.cluster.state(self.number) in ("PENDING", "RUNNING") and time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.5)
        return found[1]

    def wait_for_checkpoint(self, after: int) -> None:
        deadline = time.monotonic() + 600.0
        while newest_checkpoint(self.team) <= after:
            assert self.cluster.state(self.number) in ("PENDING", "RUNNING") and time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.2)


def newest_checkpoint(team: Team) -> int:
    return max((int(step.name.partition("-")[2]) for step in team.folder.glob(".remint/checkpoints/*/step-*")), default=0)


def weights(team: Team) -> dict[str, torch.Tensor]:
    (file,) = team.folder.glob(".remint/mlflow/artifacts/**/weights.safetensors")
    return load_file(file)


def test_two_nodes_train_the_champion_that_one_process_trains(two_nodes: Slurm, lone_team: Team, tmp_path: Path) -> None:
    alone = copy_team(lone_team.folder, tmp_path / "alone")
    job = Job(two_nodes, lone_team, *EXACT)
    job.wait_for("(Prefect)")
    token = job.own / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(secret := token.read_text().strip()) == 64
    assert two_nodes.wait(job.number) == "COMPLETED", job.said()
    assert "trains on 2 machines, 2 processes" in job.said() and "was lost" not in job.said()
    assert secret not in job.said() and not job.own.exists()
    (version,) = lone_team.json("models", "digits-vae")
    assert version["verdict"] == "promoted"
    (trained,) = lone_team.folder.glob(".remint/mlflow/artifacts/**/bundle/training.json")
    assert json.loads(trained.read_text())["world_size"] == 2
    alone.remint("run", "digits-vae", *EXACT, new=True)
    ours, theirs = weights(lone_team), weights(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.0, atol=1e-10)
    for disk in (0, 1):
        assert not list((two_nodes.folder / f"disk{disk}").glob(f"r{job.number}*")), "Ray's folder stayed on a node"


def test_a_stopped_job_goes_on(two_nodes: Slurm, lone_team: Team) -> None:
    """Cancelled outright, and as at the time limit. At last one process goes on, without Slurm."""
    cancelled = Job(two_nodes, lone_team, *LONG)
    cancelled.wait_for_checkpoint(after=0)
    two_nodes.run("scancel", cancelled.number)
    assert two_nodes.wait(cancelled.number) == "CANCELLED"
    kept = newest_checkpoint(lone_team)
    assert kept >= 50 and kept % 50 == 0
    stopped = Job(two_nodes, lone_team, *LONG)
    assert int(stopped.wait_for(r"trains (\d+)/600")) == kept + 1
    stopped.wait_for_checkpoint(after=kept)
    two_nodes.run("scancel", "--batch", "--signal=TERM", stopped.number)
    assert two_nodes.wait(stopped.number) == "FAILED"
    assert "run the same command again to continue" in stopped.said() and "was lost" not in stopped.said()
    again = newest_checkpoint(lone_team)
    assert kept < again < 600
    ended = lone_team.remint("run", "digits-vae", *LONG, new=True)
    assert f"trains {again + 1}/600" in ended.stderr + ended.stdout
    (version,) = lone_team.json("models", "digits-vae")
    assert version["verdict"] == "promoted"


def test_a_job_without_a_remote_ends_with_one_line(two_nodes: Slurm, lone_team: Team) -> None:
    job = Job(two_nodes, lone_team, remote="")
    assert two_nodes.wait(job.number) == "FAILED"
    (line,) = job.said().splitlines()
    assert line.endswith("REMINT_DVC_REMOTE: set it to a bucket, or to a folder that every node reaches")
