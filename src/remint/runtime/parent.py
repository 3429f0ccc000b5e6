"""Processes that end with the processes that started them.

This file imports the standard library only. Its source is also passed to ``python -c`` in a job's workspace, where imports
find the code of the job's commit (``in_workspace``). So it takes its lock itself and not through remint.runtime.locks.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
import threading
import time

PARENT = "REMINT_PARENT"  # pids of the ancestors, oldest first, that this process must not outlive
HELD = "REMINT_HELD"  # file that this process locks while it lives: its job is not over before (remint.runtime.jobs)
ORPHANED = 3.0  # seconds that a process has to write its checkpoint after an ancestor died; then it is killed


def ancestor_pids() -> str:
    """Return the value of PARENT for a child of this process."""
    own = str(os.getpid())
    return ",".join([*(pid for pid in os.environ.get(PARENT, "").split(",") if pid not in ("", own)), own])


def die_with_parent() -> None:
    """End this process with its ancestors: SIGTERM when one dies for any reason, SIGKILL ORPHANED seconds later (Linux).

    Each process watches all its ancestors. So a whole tree ends at once, not one level after another, and a shell in between
    is no gap. Ends at once if an ancestor is dead already.
    """
    if os.environ.get(HELD):
        fcntl.flock(os.open(os.environ[HELD], os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_SH)  # the kernel closes it
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # survives exec and needs no thread
        _watch([int(pid) for pid in os.environ.get(PARENT, "").split(",") if pid not in ("", str(os.getpid()))])
    os.environ[PARENT] = ancestor_pids()


def _watch(pids: list[int]) -> None:
    ends = select.poll()
    for pid in pids:
        try:
            ends.register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            raise SystemExit(128 + signal.SIGTERM) from None
        except OSError:
            return  # a kernel before 5.3: only the death of the direct parent is noticed

    def follow() -> None:
        ends.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHANED)
        os.kill(os.getpid(), signal.SIGKILL)

    if pids:
        threading.Thread(target=follow, name="die with parent", daemon=True).start()


def in_workspace(program: str) -> str:
    """Return the source of ``program`` for ``python -c``, preceded by ``die_with_parent``, without an import of remint."""
    with open(__file__) as stream:  # noqa: PTH123  pathlib is not among this file's imports
        return f"{stream.read()}\n\ndie_with_parent()\n{program}"
