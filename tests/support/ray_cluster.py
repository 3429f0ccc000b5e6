"""Real Ray cluster for tests: a head and machines, each a raylet of its own, on this host or on hosts of their own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.hosts import Hosts
from tests.support.ports import free_port

RAY = Path(sys.executable).parent / "ray"
SECONDS = 120.0  # a start takes five on a machine that does nothing else


class RayCluster:
    """Machines of one processor each. ``folder``: short, because Ray puts sockets into it. ``hosts``: one for each machine.

    The job runs on the first machine.
    """

    def __init__(self, folder: Path, hosts: Hosts | None = None, **variables: str) -> None:
        self.folder, self.token, self.hosts, self.variables = folder, secrets.token_hex(32), hosts, variables
        self.address = f"{hosts.addresses[0] if hosts else '127.0.0.1'}:{free_port()}"
        self.machines: list[subprocess.Popen[bytes]] = []

    def environment(self, place: int) -> dict[str, str]:
        """Return the environment of a machine; of the job it is that of the first."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        # By default Ray takes a minute to notice a host that is cut off.
        health = {"period_ms": "1000", "timeout_ms": "3000", "failure_threshold": "3"}
        return {
            **os.environ,
            **own,
            **{f"RAY_health_check_{name}": value for name, value in health.items()},
            "REMINT_CLUSTER": self.address,
            "REMINT_NODE_CACHE": str(self.folder / f"cache{place}"),
            **self.variables,
        }

    def command(self, place: int, command: Sequence[str]) -> list[str]:
        """Return the command that runs ``command`` on a machine."""
        return self.hosts.command(place, command) if self.hosts else list(command)

    def start_machine(self, place: int, *options: str) -> None:
        """Start a machine, also one that ended, with more options of ray start, and wait for it."""
        port = self.address.rpartition(":")[2]
        start = [str(RAY), "start", "--block", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0"]
        start.append(f"--dashboard-agent-listen-port={free_port()}")
        if place:
            start.append(f"--address={self.address}")
        else:
            start += ["--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        if self.hosts:
            start.append(f"--node-ip-address={self.hosts.addresses[place]}")
        if self.hosts or not place:  # hosts have disks of their own
            start.append(f"--temp-dir={self.folder}/ray{place}")
        with (self.folder / f"machine{place}").open("wb") as log:
            environment = self.environment(place)
            started = subprocess.Popen(
                self.command(place, [*start, *options]), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.machines[place:] = [started, *self.machines[place + 1 :]]
        deadline = time.monotonic() + SECONDS
        while b"Ray runtime started" not in (self.folder / f"machine{place}").read_bytes():
            assert started.poll() is None and time.monotonic() < deadline, (self.folder / f"machine{place}").read_text()
            time.sleep(0.1)

    def ranks(self, place: int | None = None) -> list[psutil.Process]:
        """Return the rank processes of one machine, or of all."""
        found = [each for machine in (self.machines if place is None else [self.machines[place]]) for each in _tree(machine.pid)]
        return [each for each in found if _environment(each).get("REMINT_NODE_RANK")]

    def kill_machine(self, place: int) -> None:
        """Kill every process of a machine at once."""
        for process in _tree(self.machines[place].pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.machines[place].wait()

    def stop(self) -> None:
        for place, machine in enumerate(self.machines):
            with suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            if machine.poll() is None:
                self.kill_machine(place)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error):
        return dict(process.environ())
    return {}


@contextmanager
def ray_cluster(size: int, hosts: Hosts | None = None, **variables: str) -> Iterator[RayCluster]:
    """Yield a cluster while the block runs. ``variables``: more of the environment of its machines and its job."""
    with tempfile.TemporaryDirectory(prefix="rr", ignore_cleanup_errors=True) as folder:
        cluster = RayCluster(Path(folder), hosts, **variables)
        try:
            for place in range(size):
                cluster.start_machine(place)
            yield cluster
        finally:
            cluster.stop()
