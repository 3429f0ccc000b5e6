"""Differences between this environment and the one of a version: packages, Python, machine."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from remint.records import Record
from remint.runtime.packages import NONE, installed, pins


class Change(Record):
    """One difference from the recorded environment."""

    name: str
    recorded: Any
    here: Any


def packages(constraints: Path, absent: Collection[str] | None = ()) -> list[Change]:
    """Return the packages whose installed version differs from the pin in a commit's constraints.txt.

    ``absent``: pins that were not installed then; None: that was not recorded, so packages that are absent here are left out.
    The local part of a version (2.13.0+cpu) counts only if the pin has one.
    """
    changes = []
    for name, pinned in pins(constraints):
        here = installed(name)
        if here == NONE and (absent is None or name in absent):
            continue
        if not _fits(here, pinned):
            changes.append(Change(name=name, recorded=NONE if name in (absent or ()) else pinned, here=here))
    return changes


def _fits(here: str, pinned: str) -> bool:
    return here == pinned or ("+" not in pinned and here.partition("+")[0] == pinned)


def python(recorded: str | None) -> list[Change]:
    """Return the change of Python's version, if one was recorded and it differs."""
    here = platform.python_version()
    return [Change(name="python", recorded=recorded, here=here)] if recorded not in (None, here) else []


def machine(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """Return the differences of two fingerprints of hardware, threads and build (remint.distributed.machine)."""
    names = dict.fromkeys((*recorded, *here))
    both = ((name, recorded.get(name), here.get(name)) for name in names)
    return [Change(name=name, recorded=before, here=now) for name, before, now in both if before != now]
