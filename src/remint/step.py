"""What every entry point in pipelines/ shares: arguments, progress, and errors as exit statuses.

A step runs as ``python -m pipelines.NAME KEY`` under dvc, by a flow or by hand. Under a flow the
variable REMINT_EVENTS names a file: the step appends one JSON object a line to it (progress, curves, the
error that ended it), and the flow reads along. By hand the same lines go to standard error in words.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remint.errors import RemintError, StorageError

EVENTS = "REMINT_EVENTS"  # file that a flow reads along
PARENT = "REMINT_PARENT"  # pids, oldest first, of the processes that this one stands below and must not outlive
HELD = "REMINT_HELD"  # file that this process keeps a lock on while it lives: until then its job is not over (remint.jobs)
ORPHANED = 3.0  # seconds that a process has to write its checkpoint once one of them has died; then it is killed
RESTORE_ONLY = "REMINT_RESTORE_ONLY"  # set while a flow asks dvc whether anything is to do: a step that would run says so
WOULD_RUN = 75  # exit status of a step under RESTORE_ONLY

_told: dict[str, float] = {}  # when a person was last told of an event


def emit(event: str, **fields: Any) -> None:
    """Tells whoever watches: the flow through its file, a person in words, at most twice a second."""
    path = os.environ.get(EVENTS)
    if path:
        line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
        with Path(path).open("a") as stream:
            stream.write(line)
    elif event != "error" and (event != "progress" or time.monotonic() - _told.get(event, 0.0) > 0.5):
        _told[event] = time.monotonic()
        words = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items())
        print(" ".join([event, *words]), file=sys.stderr)


def lineage() -> str:
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
    os.environ[PARENT] = lineage()


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


def run(main: Callable[[str], None], *, always: bool = False) -> None:
    """Runs one step with the key given on the command line; ends the process with its exit status.

    ``always``: a step that dvc runs every time (snapshot), also while a flow only asks.
    """
    key = sys.argv[1]
    if os.environ.get(RESTORE_ONLY) and not always:
        emit("would_run", step=Path(sys.argv[0]).stem, key=key)
        raise SystemExit(WOULD_RUN)
    die_with_parent()
    emit("started", step=Path(sys.argv[0]).stem, key=key, pid=os.getpid())
    try:
        main(key)
    except RemintError as error:
        _end(error)
    except OSError as error:
        if error.errno is None:
            raise
        _end(StorageError(f"{error.strerror}: {error.filename or 'a file'}"))
    emit("ended", step=Path(sys.argv[0]).stem, key=key)


def _end(error: RemintError) -> None:
    emit("error", kind=type(error).__name__, message=str(error))
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_status)
