"""Differences between this environment and the one of a version: packages, Python, machine."""

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
    """One difference from the recorded environment."""

    name: str
    recorded: Any
    here: Any


def packages(constraints: Path) -> list[Change]:
    """Return the packages whose installed version differs from the pin in a commit's constraints.txt.

    The local part of a version (2.13.0+cpu) counts only if the pin has one.
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
    """Return the change of Python's version, if one was recorded and it differs."""
    here = platform.python_version()
    return [Change(name="python", recorded=recorded, here=here)] if recorded not in (None, here) else []


def machine(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """Return the differences of two fingerprints of hardware, threads and build (remint.distributed.machine)."""
    names = dict.fromkeys((*recorded, *here))
    both = ((name, recorded.get(name), here.get(name)) for name in names)
    return [Change(name=name, recorded=before, here=now) for name, before, now in both if before != now]
