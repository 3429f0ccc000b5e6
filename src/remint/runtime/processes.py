"""Child processes that end with this process. Their events are read while they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from remint.errors import Interrupted
from remint.redaction import redact_file
from remint.runtime.parent import HELD, PARENT, ancestor_pids
from remint.runtime.retry import wait_until

CHILDREN = "children"  # file in a job's folder that each child locks while it lives
GRACE = 30.0  # seconds that a child has to write its checkpoint after SIGTERM

AGAIN = "interrupted: the child processes were stopped and finished work is kept; run the same command again to continue"

stopping = threading.Event()  # set by Ctrl-C and SIGTERM: every wait below ends with Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the child processes inside the block: waits for them then raise Interrupted."""

    def stop_all(_sign: int, _frame: FrameType | None) -> None:
        stopping.set()

    former = {sign: signal.signal(sign, stop_all) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in former.items():
            signal.signal(sign, handler)


def run_process(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    events: Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Run a command in its own process group until it ends. Return its exit status.

    Output is appended to ``log`` in the job's folder; the job is not over while the child lives (remint.runtime.jobs).
    ``on_event`` gets each line that the child appends to ``events``. When the wait ends for any reason, the whole group is
    stopped: SIGTERM, then SIGKILL after GRACE seconds. Raises Interrupted if ``stopping`` was set.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**env, PARENT: ancestor_pids(), HELD: env.get(HELD) or str(log.absolute().parent / CHILDREN)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    offset = 0
    try:
        while child.poll() is None:
            if stopping.wait(0.05):
                raise Interrupted(AGAIN)
            offset = _read(events, offset, on_event)
        _read(events, offset, on_event)
        return child.returncode
    finally:
        stop(child)
        redact_file(log)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a child's process group: SIGTERM, GRACE seconds, SIGKILL. Do nothing if it is gone."""
    for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        if wait_until(lambda: _is_gone(child), patience, every=0.05):
            return


def _is_gone(child: subprocess.Popen[bytes]) -> bool:
    """Return whether no process of the group is left."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return False


def _read(events: Path | None, offset: int, on_event: Callable[[dict[str, Any]], None] | None) -> int:
    """Pass the complete lines after ``offset`` bytes to ``on_event``. Return the new offset."""
    if events is None or on_event is None or not events.exists():
        return offset
    with events.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            on_event(json.loads(line))
    return offset
