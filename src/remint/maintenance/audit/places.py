"""Audit of this home: folders that jobs and writers left behind."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from remint.maintenance.audit.fault import Fault, fault
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git

PATTERNS = ("models/.*", "checkpoints/*/.*.tmp", "checkpoints/.*.tmp", "evaluations/.*", "*.promote-*")
OF_PROCESS = re.compile(r"\..+\.(\d+)\.tmp")  # folder of manifest.whole_folder, with the pid of its writer
OF_JOB = re.compile(r"\.[0-9a-f]{64}\.(.+)")  # folder of a champion's evaluation, with the id of its job
OLD = 3600.0  # seconds without a change after which any other temporary folder counts as left behind


def workspaces(home: Home) -> Iterator[Fault]:
    """Find checkouts of jobs that are not alive."""
    folders = sorted(home.workspaces.glob("*"))
    alive = {job.id for job in jobs.alive(home)}  # after the folders: a job is alive before it makes its folder
    for folder in folders:
        if folder.name not in alive and folder.is_dir():
            yield _left("workspace", folder, "Its job is not alive.", "A checkout with all its data takes space.")


def temporary(home: Home) -> Iterator[Fault]:
    """Find half-written folders whose writers were killed."""
    folders = [folder for pattern in PATTERNS for folder in sorted(home.path.glob(pattern))]
    alive = {job.id for job in jobs.alive(home)}
    for folder in folders:
        if folder.is_dir() and _is_left(folder, alive):
            yield _left("temporary", folder, "Its writer was killed.", "It is not used and takes space.")


def _is_left(folder: Path, alive: Collection[str]) -> bool:
    owner = OF_PROCESS.fullmatch(folder.name)
    if owner:
        return not psutil.pid_exists(int(owner[1]))
    job = OF_JOB.fullmatch(folder.name)
    if job:
        return job[1] not in alive
    newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - newest > OLD


def _left(kind: str, folder: Path, what: str, risk: str) -> Fault:
    return fault(kind, str(folder), what, risk, "remint audit --repair removes it.", mend=lambda: git.remove(folder))
