"""Child processes that do not outlive us, and whose words we read while they speak."""

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

CHILDREN = "children"  # file in a job's folder that each child keeps a lock on while it lives
GRACE = 30.0  # seconds that a child has to write its checkpoint after SIGTERM

AGAIN = "interrupted: the children were stopped and what was done is kept; run the same command again to go on"

stopping = threading.Event()  # set by Ctrl-C: every wait below ends with Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM stop the children and let whoever waits for them end with that reason."""

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
    """Runs a command in a process group of its own until it ends; its exit status.

    Output goes to ``log`` (appended); its folder is the job's, which is not over while the child lives (remint.runtime.jobs).
    Each line that the child appends to ``events`` is handed to ``on_event`` as it comes. Whatever ends the wait,
    the whole group is stopped: SIGTERM, then SIGKILL after GRACE seconds. Raises Interrupted where ``stopping`` was set.
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
    """Stops a child's process group: SIGTERM, GRACE seconds, SIGKILL. Nothing where it is gone."""
    for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        if wait_until(lambda: _is_gone(child), patience, every=0.05):
            return


def _is_gone(child: subprocess.Popen[bytes]) -> bool:
    """Whether no process of the group is left."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return False


def _read(events: Path | None, offset: int, on_event: Callable[[dict[str, Any]], None] | None) -> int:
    """Hands on the whole lines that came since ``offset`` bytes; the new offset."""
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
