"""Registry of live jobs. A job locks its folder. If its locks are free and it did not record ``done``, it has died.

HOME/jobs/ID/job.json    pipeline, process, Prefect flow run and MLflow run of the job
HOME/jobs/ID/lock        held while the job lives; the kernel frees it when the process ends, also when it is killed
HOME/jobs/ID/children    held by each process that the job started: a trainer may outlive its flow by some seconds
HOME/jobs/ID/*.log       output of dvc and the steps
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from remint.runtime import locks
from remint.runtime.home import Home
from remint.runtime.processes import CHILDREN

KEPT = 20  # finished jobs whose logs are kept
COLLECT = "collect"  # name of a lock: jobs share it while they begin, remint gc holds it alone while it removes


class Job:
    """One job: its folder and its recorded facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    @property
    def facts(self) -> dict[str, Any]:
        path = self.folder / "job.json"
        facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return facts

    def note(self, **facts: Any) -> None:
        """Add to the recorded facts, atomically (by a rename)."""
        temporary = self.folder / ".job.json"
        temporary.write_text(json.dumps({**self.facts, **facts}, indent=1, sort_keys=True) + "\n")
        temporary.rename(self.folder / "job.json")


@contextmanager
def live(home: Home, **facts: Any) -> Iterator[Job]:
    """Register a new job, alive inside the block. Wait first until a running collection (``remint gc``) ends."""
    folder = home.jobs / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    job = Job(folder)
    with ExitStack() as stack:
        with _collection(home, shared=True):
            folder.mkdir(parents=True)
            stack.enter_context(locks.locked(folder / "lock"))
            job.note(pid=os.getpid(), **facts)
        try:
            yield job
        finally:
            job.note(done=True)
    _forget_old(home)


def dead(home: Home) -> list[Job]:
    """Return the jobs that ended without recording it: they were killed, or the machine went down."""
    found = []
    for folder in sorted(home.jobs.glob("*")):
        job = Job(folder)
        if (folder / "job.json").exists() and not job.facts.get("done") and is_over(folder):
            found.append(job)
    return found


def alive(home: Home) -> list[Job]:
    """Return the jobs with a running process, their own or one that they started."""
    folders = (folder for folder in sorted(home.jobs.glob("*")) if (folder / "lock").exists())
    return [Job(folder) for folder in folders if not is_over(folder)]


def is_over(folder: Path) -> bool:
    """Return whether no process of the job in this folder is left."""
    return locks.is_free(folder / "lock") and locks.is_free(folder / CHILDREN)


def collecting(home: Home) -> AbstractContextManager[None]:
    """Keep jobs from beginning inside the block; ``alive`` returns those that began before. Collections do not overlap."""
    return _collection(home, shared=False)


def is_collecting(home: Home) -> bool:
    """Return whether a collection is running, so that a new job would wait."""
    return not locks.is_free(home.lock(COLLECT))


def _collection(home: Home, *, shared: bool) -> AbstractContextManager[None]:
    return locks.locked(home.ensure().lock(COLLECT), shared=shared)


def _forget_old(home: Home) -> None:
    done = [folder for folder in sorted(home.jobs.glob("*")) if Job(folder).facts.get("done")]
    for folder in done[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
