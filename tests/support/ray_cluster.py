"""Real Ray cluster for tests: a head and machines, each a raylet of its own on this host."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ports import free_port

RAY = Path(sys.executable).parent / "ray"
SECONDS = 120.0  # a start takes five on a machine that does nothing else


class RayCluster:
    """Machines of one processor each. ``folder``: short, because Ray puts sockets into it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.token = folder, secrets.token_hex(32)
        self.address = f"127.0.0.1:{free_port()}"
        self.machines: list[subprocess.Popen[bytes]] = []
        for _ in range(size):
            self.add_machine()

    def environment(self, place: int) -> dict[str, str]:
        """Return the environment of a machine; of the job it is that of the first."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        # By default Ray takes longer to notice a machine that is gone.
        health = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        return {
            **os.environ,
            **own,
            **health,
            "REMINT_CLUSTER": self.address,
            "REMINT_NODE_CACHE": str(self.folder / f"cache{place}"),
        }

    def add_machine(self) -> None:
        """Start one more machine, and wait for it."""
        place, port = len(self.machines), self.address.rpartition(":")[2]
        here = [
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.folder}/ray",
        ]
        there = [f"--address={self.address}"]
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
        command = [str(RAY), "start", "--block", "--num-cpus=1", *ports, *(there if place else here)]
        with (self.folder / f"machine{place}").open("wb") as log:
            environment = self.environment(place)
            started = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.machines.append(started)
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
def ray_cluster(size: int) -> Iterator[RayCluster]:
    with tempfile.TemporaryDirectory(prefix="rr", ignore_cleanup_errors=True) as folder:
        cluster = RayCluster(Path(folder), size)
        try:
            yield cluster
        finally:
            cluster.stop()
