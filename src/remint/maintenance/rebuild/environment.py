"""What differs between the environment that a version was made in and this one: packages, Python, the machine."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NONE = "not installed"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*={2,3}\s*([^\s;#]+)")

Change = dict[str, Any]  # name, recorded, here


def packages(constraints: Path) -> list[Change]:
    """The packages that are not installed here as a commit's constraints.txt pins them.

    A build's own suffix (2.13.0+cpu) counts only where the pin has one.
    """
    pins = [match.groups() for line in constraints.read_text().splitlines() if (match := PIN.match(line.strip()))]
    return [change(name, pinned, here) for name, pinned in pins if not _fits(here := _installed(name), pinned)]


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
    return [change("python", recorded, here)] if recorded not in (None, here) else []


def machine(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """What differs between two fingerprints of hardware, threads and build (remint.distributed.machine)."""
    names = dict.fromkeys((*recorded, *here))
    return [change(name, recorded.get(name), here.get(name)) for name in names if recorded.get(name) != here.get(name)]


def change(name: str, recorded: Any, here: Any) -> Change:
    return {"name": name, "recorded": recorded, "here": here}
