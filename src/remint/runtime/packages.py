"""Pins of a constraints.txt, and the versions that are installed here."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NONE = "not installed"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*={2,3}\s*([^\s;#]+)")


def pins(constraints: Path) -> list[tuple[str, str]]:
    """Return name and version of each pin, in order."""
    matches = (PIN.match(line.strip()) for line in constraints.read_text().splitlines())
    return [(match[1], match[2]) for match in matches if match]


def installed(name: str) -> str:
    """Return the installed version of a package, or NONE."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE
