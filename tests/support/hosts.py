"""Hosts of one test as network namespaces: each has an address, a name and a link of its own.

All links end at one bridge, in one more namespace, so nothing of it is seen outside and two test runs do not meet. The names
carry the process id of the test run: hosts that a killed run has left are removed by the next one. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.processes import is_alive

PREFIX = "remint.hosts"
MADE = Path("/run/netns")  # where iproute2 keeps namespaces


class Hosts:
    """``size`` hosts, which reach each other by their addresses. ``delayed``: the link of the first takes ``delay`` seconds."""

    def __init__(self, size: int, delay: float = 0.0) -> None:
        self.prefix, self.relay = f"{PREFIX}-{os.getpid()}", None
        self.names = [f"{self.prefix}-{place}" for place in range(size)]
        self.addresses = [f"10.77.0.{place + 10}" for place in range(size)]
        self._switch = f"{self.prefix}-switch"
        self.delay = delay
        _remove(self.prefix)
        _ip(f"netns add {self._switch}")
        self._on_switch("link add bridge type bridge")
        self._on_switch("link set bridge up")
        for place in range(size):
            self._add(place)

    def _add(self, place: int) -> None:
        name, port = self.names[place], f"port{place}"
        _ip(f"netns add {name}")
        if self.delay and place == 0:
            relay = [sys.executable, "-m", "tests.support.slow_link", str(self.delay), name, self._switch, port]
            self.relay = subprocess.Popen(relay, stdout=subprocess.PIPE)
            assert self.relay.stdout and self.relay.stdout.readline() == b"ready\n"
        else:
            self._on_switch(f"link add {port} type veth peer name eth0 netns {name}")
        self._on_switch(f"link set {port} master bridge up")
        for command in (
            "link set lo up",
            f"addr add {self.addresses[place]}/24 dev eth0",
            "link set eth0 up",
            "route add default dev eth0",  # programs find out their address by it
        ):
            _ip(f"-n {name} {command}")

    def _on_switch(self, command: str) -> None:
        _ip(f"-n {self._switch} {command}")

    def command(self, place: int, command: Sequence[str], own: dict[Path, Path] | None = None) -> list[str]:
        """Return the command that runs ``command`` on a host. ``own``: folders that lie elsewhere for this host."""
        mounts = "".join(f"mount --bind {shlex.quote(str(at))} {shlex.quote(str(path))} && " for path, at in (own or {}).items())
        program = f"{mounts}hostname host{place} && exec {shlex.join(command)}"
        return ["ip", "netns", "exec", self.names[place], "unshare", "--uts", "sh", "-c", program]

    @contextmanager
    def entered(self, place: int) -> Iterator[None]:
        """Let this thread, and what it starts, use the network of a host while the block runs."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as before, (MADE / self.names[place]).open() as there:
            assert libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), 0) == 0

    def cut(self, place: int) -> None:
        """Take the link of a host down."""
        self._on_switch(f"link set port{place} down")

    def mend(self, place: int) -> None:
        """Take the link of a host up again."""
        self._on_switch(f"link set port{place} up")

    def lose(self, place: int, share: float) -> None:
        """Lose this share of the packets that a host sends and gets."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = f"iptables -A {chain} {way} eth0 -m statistic --mode random --probability {share} -j DROP"
            _run(["ip", "netns", "exec", self.names[place], *rule.split()])

    def lost(self, place: int) -> int:
        """Return the number of packets that ``lose`` has lost."""
        said = _run(["ip", "netns", "exec", self.names[place], "iptables", "-L", "-v", "-x", "-n"])
        return sum(int(line.split()[0]) for line in said.splitlines() if "DROP" in line and "statistic" in line)

    def close(self) -> None:
        _remove(self.prefix)
        if self.relay:
            self.relay.kill()
            self.relay.wait()


@contextmanager
def hosts(size: int, delay: float = 0.0) -> Iterator[Hosts]:
    """Yield hosts while the block runs. Skips the test where they cannot be made."""
    _require_namespaces()
    _remove_stale()
    made = Hosts(size, delay)
    try:
        yield made
    finally:
        made.close()


def _require_namespaces() -> None:
    probe = f"{PREFIX}-{os.getpid()}-probe"
    commands = ([f"ip netns add {probe}"], [f"ip -n {probe} link add port type veth peer name eth0", f"ip netns del {probe}"])
    try:
        for command in (each for some in commands for each in some):
            _run(command.split())
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        _remove(f"{PREFIX}-{os.getpid()}")
        pytest.skip(f"network namespaces cannot be made here (they need root and iproute2): {said}")


def _remove_stale() -> None:
    """Remove the hosts of test runs that were killed."""
    for path in MADE.glob(f"{PREFIX}-*-*") if MADE.exists() else ():
        owner = path.name.split("-")[1]
        if not is_alive(int(owner)):
            _remove(f"{PREFIX}-{owner}")


def _remove(prefix: str) -> None:
    """Remove the namespaces of one test run, and all processes in them."""
    for path in sorted(MADE.glob(f"{prefix}-*")) if MADE.exists() else ():
        deadline = time.monotonic() + 10.0
        while (pids := _run(["ip", "netns", "pids", path.name]).split()) and time.monotonic() < deadline:
            for pid in map(int, pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        _ip(f"netns del {path.name}")


def _ip(command: str) -> None:
    _run(["ip", *command.split()])


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
