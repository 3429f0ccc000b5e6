"""A process that ends with the processes that started it.

This file imports the standard library only: its source is also handed to ``python -c`` in a job's workspace, where the
code that can be imported is that of the job's commit (``in_workspace``). So it takes its lock itself, and not
through remint.runtime.locks.
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

PARENT = "REMINT_PARENT"  # pids, oldest first, of the processes that this one stands below and must not outlive
HELD = (
    "REMINT_HELD"  # file that this process keeps a lock on while it lives: until then its job is not over (remint.runtime.jobs)
)
ORPHANED = 3.0  # seconds that a process has to write its checkpoint once one of them has died; then it is killed


def ancestor_pids() -> str:
    """The value of PARENT for a child of this process."""
    own = str(os.getpid())
    return ",".join([*(pid for pid in os.environ.get(PARENT, "").split(",") if pid not in ("", own)), own])


def die_with_parent() -> None:
    """Ends this process with those that it stands below: SIGTERM when one dies, however, SIGKILL ORPHANED seconds later (Linux).

    Each process watches all that it stands below, so that a whole tree ends at once and not link after link; a shell in
    between, which asks for nothing, is no gap. Ends at once where one has died before.
    """
    if os.environ.get(HELD):
        fcntl.flock(os.open(os.environ[HELD], os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_SH)  # the kernel closes it
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # outlives exec, and needs no thread that gets its turn
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
            return  # a kernel before 5.3: the nearest parent's death alone is noticed

    def follow() -> None:
        ends.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHANED)
        os.kill(os.getpid(), signal.SIGKILL)

    if pids:
        threading.Thread(target=follow, name="die with parent", daemon=True).start()


def in_workspace(program: str) -> str:
    """Return the source of ``program`` for ``python -c``, preceded by ``die_with_parent`` without an import of ours."""
    with open(__file__) as stream:  # noqa: PTH123  nothing but what the top of this file imports
        return f"{stream.read()}\n\ndie_with_parent()\n{program}"
