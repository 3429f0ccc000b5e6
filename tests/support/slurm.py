"""Real Slurm for tests: a controller and nodes, each on a host of its own (hosts.py), with processes of its own.

Slurm's daemons run as root without munge: nothing outside the test's network namespaces reaches them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.hosts import Hosts, hosts

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scancel", "squeue")
CONF = """
ClusterName=test
SlurmctldHost=host0({controller})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=30
{nodes}
PartitionName=all Nodes=ALL Default=YES
"""


class Slurm:
    """A controller and its nodes. ``folder``: of their logs; ``disks``: a folder of each node, at the same path on all of them."""

    def __init__(self, folder: Path, made: Hosts) -> None:
        self.folder, self.hosts, self.disk = folder, made, folder / "disk"
        nodes = "\n".join(
            f"NodeName=host{place} NodeAddr={address} CPUs=1 RealMemory=1000" for place, address in enumerate(made.addresses)
        )
        self.conf = folder / "slurm.conf"
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # hosts have no /sys/fs/cgroup to detect it by
        self.conf.write_text(CONF.format(controller=made.addresses[0], folder=folder, nodes=nodes))
        for name in ("state", "disk", *(f"{kind}{place}" for kind in ("host", "disk") for place in range(len(made.names)))):
            (folder / name).mkdir()
        self.daemons = [self._start(0, "slurmctld", "-D")]
        for place in range(len(made.names)):  # a process sees those of its own host only, as ray stop must
            self.daemons.append(
                self._start(place, "unshare", "--pid", "--fork", "--mount-proc", "slurmd", "-D", "-N", f"host{place}")
            )
        self._wait_for_nodes()

    def _start(self, place: int, *command: str) -> subprocess.Popen[bytes]:
        run = self.hosts.command(place, command, {self.disk: self.folder / f"disk{place}"})
        with (self.folder / "daemons.log").open("ab") as log:
            return subprocess.Popen(run, env=self.environment(), stdout=log, stderr=log, start_new_session=True)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a command of Slurm on the first node, and return its output."""
        done = subprocess.run(
            self.hosts.command(0, command),
            env={**self.environment(), **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def wait(self, job: str, seconds: float = 900.0) -> str:
        """Wait until a job has ended, and return its state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            assert time.monotonic() < deadline, f"job {job} is {state}"
            time.sleep(0.5)
        return state

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 60.0
        while self.run("sinfo", "--noheader", "--format=%T").strip() != "idle":
            assert time.monotonic() < deadline, "".join(log.read_text()[-2000:] for log in self.folder.glob("*.log"))
            time.sleep(0.2)


@contextmanager
def slurm(size: int) -> Iterator[Slurm]:
    """Yield a Slurm of ``size`` nodes. Skips the test where Slurm is not installed, or hosts cannot be made."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed here ({missing[0]} is missing): apt install slurm-wlm")
    with hosts(size) as made, tempfile.TemporaryDirectory(prefix="sl", ignore_cleanup_errors=True) as folder:
        yield Slurm(Path(folder), made)
