"""Real processes in tests: whether one runs, what it runs, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")


def wait_for(path: Path, seconds: float = 20.0) -> str:
    """Wait until a file has content, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def wait_for_value(condition: Callable[[], T], seconds: float, every: float, log: Callable[[], str]) -> T:
    """Wait until a condition returns something true, and return it. Its errors of files and processes mean: not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, psutil.Error):
            found = condition()
            if found:
                return found
        time.sleep(every)
    raise AssertionError(log())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def ends_within(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def query_or_default(question: Callable[[], T], otherwise: T) -> T:
    """Return the answer about a process, or ``otherwise`` if it has ended (even as a zombie)."""
    try:
        return question()
    except psutil.NoSuchProcess:
        return otherwise


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's command line; empty if it has ended."""
    return query_or_default(process.cmdline, [])


def descendants(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process."""
    return query_or_default(lambda: psutil.Process(pid).children(recursive=True), [])
