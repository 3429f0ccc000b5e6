"""Tags by which a flow run names its process, so that a run whose process died before its job began can be ended.

Prefect creates a flow run before the flow's first line, and a job records its flow run in that line. A process that is killed
between the two leaves an open run that no job names.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import tags

from remint.stores.ledger.leases import machine

MACHINE, PROCESS = "remint-machine ", "remint-process "
ZOMBIE, START = "Z", 18  # state of a process that ended; place of its start among the fields behind the state


def tagged() -> AbstractContextManager[Any]:
    """Give the flow runs that begin inside the block the tags of this process."""
    return tags(*own_tags())


def machine_tag() -> str | None:
    """Return the tag of this boot and process namespace, within which a process id means one process; None if it is not Linux."""
    try:
        return f"{MACHINE}{machine()} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def own_tags() -> list[str]:
    """Return the tags of this process."""
    here, started = machine_tag(), _start(os.getpid())
    return [here, f"{PROCESS}{os.getpid()} {started}"] if here and started else []


def process_is_over(tagged_with: Collection[str]) -> bool:
    """Return whether the process that these tags name has ended. They are tags of this machine; without a process: False."""
    for tag in tagged_with:
        if tag.startswith(PROCESS):
            pid, _, started = tag.removeprefix(PROCESS).partition(" ")
            return _start(int(pid)) != started
    return False


def _start(pid: int) -> str | None:
    """Return the start of a process, in clock ticks since the boot; None if it has ended."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == ZOMBIE else others[START]
