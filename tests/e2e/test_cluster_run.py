"""`remint run` over a real Ray cluster: code, data and weights travel, and the job goes on as any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hosts import hosts
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.s3 import AWS_VARIABLES, gateway
from tests.support.team import Team

pytest.importorskip("ray")


@dataclass
class ClusterTeam(Team):
    """A team whose jobs know a cluster, and a DVC remote that its machines reach."""

    cluster: RayCluster | None = None
    remote: str = ""

    def environment(self) -> dict[str, str]:
        assert self.cluster is not None
        ray = {name: value for name, value in self.cluster.environment(0).items() if name.startswith(("RAY_", "REMINT_CLUSTER"))}
        return {**super().environment(), **ray, "REMINT_DVC_REMOTE": self.remote}


@pytest.mark.soak
def test_a_job_trains_on_two_machines_with_the_code_of_its_commit(lone_team: Team, tmp_path: Path) -> None:
    with ray_cluster(2) as cluster:
        team = ClusterTeam(lone_team.folder, cluster=cluster, remote=str(tmp_path / "remote"))
        loop = team.folder / "src/remint/training/loop.py"
        mark = 'emit("compiled", seconds=4321.0)\n    model.requires_grad_(False)\n'
        loop.write_text(loop.read_text().replace("model.requires_grad_(False)\n", mark, 1))
        team.sh("git commit -qam 'another loop'")
        said = team.remint("doctor", new=True, status=0).stdout
        assert "cluster" not in said
        run = team.remint("run", "digits-vae", "--set", "training.nodes=2", new=True)
        assert "trains on 2 machines, 2 processes" in run.stdout + run.stderr
        assert "compiled in 4321 s" in run.stdout + run.stderr, "the machines ran the code that is installed"
        (version,) = team.json("models", "digits-vae")
        assert version["verdict"] == "promoted"
        one = team.remint("run", "digits-vae", new=True)
        assert "nothing was trained" in one.stdout, "the number of machines is in no key"
    refused = team.remint("run", "digits-vae", "--set", "training.nodes=2", "--set", "training.seed=5", new=True, status=2)
    assert "no Ray cluster answers at" in refused.stderr and "ray start --head" in refused.stderr


@pytest.mark.soak
def test_hosts_get_their_data_from_s3(lone_team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job and the machines reach S3, on a third host, with the credentials of their own environment."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "s3").mkdir()
    with hosts(3) as made, made.entered(2), gateway(tmp_path / "s3", made.addresses[2]) as server:
        store = server.bucket({})
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        with ray_cluster(2, made) as cluster, made.entered(0):
            team = ClusterTeam(lone_team.folder, cluster=cluster, remote=f"s3://{store}/dvc")
            log = tmp_path / "log"
            assert team.start("run", "digits-vae", "--set", "training.nodes=2", log=log).wait() == 0, log.read_text()
            assert "trains on 2 machines, 2 processes" in log.read_text()
            (version,) = team.json("models", "digits-vae")
            assert version["verdict"] == "promoted"
            fetched = [list((cluster.folder / f"cache{place}/data").glob("*/*.npy")) for place in range(2)]
            assert all(fetched), "each host has the data in its own cache"
