"""What differs between the environment that a version was made in and this one: packages, Python, the machine."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from remint.records import Record

NONE = "not installed"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*={2,3}\s*([^\s;#]+)")


class Change(Record):
    """One thing that is not the same here as it was."""

    name: str
    recorded: Any
    here: Any


def packages(constraints: Path) -> list[Change]:
    """The packages that are not installed here as a commit's constraints.txt pins them.

    A build's own suffix (2.13.0+cpu) counts only where the pin has one.
    """
    pins = [match.groups() for line in constraints.read_text().splitlines() if (match := PIN.match(line.strip()))]
    return [Change(name=name, recorded=pinned, here=here) for name, pinned in pins if not _fits(here := _installed(name), pinned)]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE


def _fits(here: str, pinned: str) -> bool:
    return here == pinned or ("+" not in pinned and here.partition("+")[0] == pinned)


def python(recorded: str | None) -> list[Change]:
    """Python, where its version was recorded and is another."""
    here = platform.python_version()
    return [Change(name="python", recorded=recorded, here=here)] if recorded not in (None, here) else []


def machine(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """What differs between two fingerprints of hardware, threads and build (remint.distributed.machine)."""
    names = dict.fromkeys((*recorded, *here))
    both = ((name, recorded.get(name), here.get(name)) for name in names)
    return [Change(name=name, recorded=before, here=now) for name, before, now in both if before != now]
