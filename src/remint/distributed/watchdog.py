"""Finds a process of a group of ranks that was stopped (SIGSTOP) while the others wait for it, and kills it.

A stopped rank is waited for as long as the process group is patient: it neither fails nor goes on. Silence does not tell
it from the others, which are as silent because they wait for it, nor from a rank that is busy with a long step, a large
checkpoint or a slow disk. The kernel does: it is asked for the state of each process. So a rank that is slow is left alone,
and so is a machine that slept: what is counted is how often the rank was seen stopped while this process was awake itself.
Where every process of the group is stopped, somebody has paused the training, and it waits.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped, unused-ignore]

INTERVAL = 5.0  # seconds between two looks
STOPPED_CHECKS = 4  # in a row that must find a process stopped


@contextmanager
def watched(program: str) -> Iterator[list[int]]:
    """While the block runs, kills stopped processes below a child of ours that has ``program`` in its command; their pids."""
    killed: list[int] = []
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(program, killed, over), name="watchdog", daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def _watch(program: str, killed: list[int], over: threading.Event) -> None:
    seen: dict[psutil.Process, int] = {}  # how often in a row each was found stopped
    while not over.wait(INTERVAL):
        group = list(_group(program))
        stopped = [process for process in group if _is_stopped(process)]
        seen = {process: seen.get(process, 0) + 1 for process in stopped} if len(stopped) < len(group) else {}
        for process, looks in seen.items():
            if looks == STOPPED_CHECKS:
                killed.append(process.pid)
                print(f"process {process.pid} was stopped for some {STOPPED_CHECKS * INTERVAL:.0f} s: killed", file=sys.stderr)
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)  # the only one that a stopped process obeys


def _group(program: str) -> Iterator[psutil.Process]:
    """The children of ours that run ``program``, and all below them."""
    for child in psutil.Process().children():
        try:
            if program in child.cmdline():
                yield child
                yield from child.children(recursive=True)
        except psutil.NoSuchProcess:
            continue


def _is_stopped(process: psutil.Process) -> bool:
    """By a signal. One that a debugger holds is not."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
