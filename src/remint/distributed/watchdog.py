"""Watchdog of a group of ranks: kill a rank that was stopped (SIGSTOP) while the others wait for it.

The other ranks wait for a stopped rank until COLLECTIVE_TIMEOUT. A missing heartbeat does not identify the stopped rank:
the waiting ranks are silent too, and so is a rank in a long step, a large checkpoint or a slow write. The watchdog therefore
asks the kernel for the state of each process. A slow rank is left alone. A machine that slept causes no kill: only checks
made while this process runs are counted. If every process of the group is stopped, a person has paused the training,
and the watchdog does nothing.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped, unused-ignore]

INTERVAL = 5.0  # seconds between two checks
STOPPED_CHECKS = 4  # consecutive checks that must find a process stopped


@contextmanager
def kill_stopped_ranks(program: str) -> Iterator[list[int]]:
    """Kill stopped processes of the group while the block runs, and yield the list of their pids.

    The group: each child process that has ``program`` in its command, and all its descendants.
    """
    killed: list[int] = []
    finished = threading.Event()
    watcher = threading.Thread(target=_check_repeatedly, args=(program, killed, finished), name="watchdog", daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        finished.set()
        watcher.join()


def _check_repeatedly(program: str, killed: list[int], finished: threading.Event) -> None:
    stopped_checks: dict[psutil.Process, int] = {}  # consecutive checks that found each process stopped
    while not finished.wait(INTERVAL):
        group = list(_group(program))
        stopped = [process for process in group if _is_stopped(process)]
        stopped_checks = {process: stopped_checks.get(process, 0) + 1 for process in stopped} if len(stopped) < len(group) else {}
        for process, checks in stopped_checks.items():
            if checks == STOPPED_CHECKS:
                killed.append(process.pid)
                print(
                    f"killed process {process.pid}, which was stopped for about {STOPPED_CHECKS * INTERVAL:.0f} s",
                    file=sys.stderr,
                )
                with suppress(psutil.NoSuchProcess):  # it has ended
                    process.send_signal(signal.SIGKILL)  # the only signal that ends a stopped process


def _group(program: str) -> Iterator[psutil.Process]:
    """Yield the child processes that run ``program``, and all their descendants."""
    for child in psutil.Process().children():
        try:
            if program in child.cmdline():
                yield child
                yield from child.children(recursive=True)
        except psutil.NoSuchProcess:
            continue


def _is_stopped(process: psutil.Process) -> bool:
    """Return whether a signal has stopped the process. A process held by a debugger does not count."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
