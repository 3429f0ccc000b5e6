"""The watchdog kills a process that was stopped while others of its group were not. Real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from remint.distributed import watchdog
from tests.support.processes import is_alive

# Parent of two sleeping processes. It prints their pids.
GROUP = """
import subprocess, sys
children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
print(*(child.pid for child in children), flush=True)
children[0].wait()
"""


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    monkeypatch.setattr(watchdog, "INTERVAL", 0.05)
    with subprocess.Popen([sys.executable, "-c", GROUP, "the.ranks"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        yield parent, pids
        parent.kill()
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def wait_for(said: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not said() and time.monotonic() < deadline:
        time.sleep(0.02)
    return said()


def test_only_the_stopped_process_is_killed(group: tuple[subprocess.Popen[str], list[int]]) -> None:
    parent, (first, second) = group
    with watchdog.kill_stopped_ranks("the.ranks") as killed:
        os.kill(first, signal.SIGSTOP)
        assert wait_for(lambda: not is_alive(first))
        assert killed == [first]
        assert parent.wait(timeout=10) == 0
    assert is_alive(second)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["slow", "another program", "all", "resumed in time"])
def test_sleeping_foreign_and_briefly_stopped_processes_are_not_killed(
    case: str, group: tuple[subprocess.Popen[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sleeping processes, processes that are not ours, a group that is paused completely, a process stopped for a moment."""
    parent, (first, second) = group
    looked = []
    real = watchdog._group
    monkeypatch.setattr(watchdog, "_group", lambda program: looked.append(program) or real(program))
    stopped = {"slow": [], "another program": [first], "all": [parent.pid, first, second], "resumed in time": [first]}[case]
    if case == "resumed in time":
        monkeypatch.setattr(watchdog, "INTERVAL", 0.5)
    with watchdog.kill_stopped_ranks("another" if case == "another program" else "the.ranks") as killed:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        if case == "resumed in time":
            assert wait_for(lambda: len(looked) >= watchdog.STOPPED_CHECKS - 2)
            os.kill(first, signal.SIGCONT)
        assert wait_for(lambda: len(looked) > watchdog.STOPPED_CHECKS + 1)
        assert killed == []
    assert is_alive(first) and is_alive(second)
