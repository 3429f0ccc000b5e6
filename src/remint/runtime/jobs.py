"""Which jobs are alive. A job holds a lock on its folder; one whose locks are free and that never said done has died.

HOME/jobs/ID/job.json    what it is: pipeline, process, Prefect's flow run, MLflow's run
HOME/jobs/ID/lock        held while the job lives; the kernel frees it however the process ends
HOME/jobs/ID/children    held by each process that the job started: a trainer may outlive its flow by some seconds
HOME/jobs/ID/*.log       what dvc and the steps printed
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
COLLECT = "collect"  # name of the lock that jobs begin under, shared, and remint gc removes under, alone


class Job:
    """The folder of one job and what is known of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    @property
    def facts(self) -> dict[str, Any]:
        path = self.folder / "job.json"
        facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return facts

    def note(self, **facts: Any) -> None:
        """Adds to what is known, in one rename."""
        temporary = self.folder / ".job.json"
        temporary.write_text(json.dumps({**self.facts, **facts}, indent=1, sort_keys=True) + "\n")
        temporary.rename(self.folder / "job.json")


@contextmanager
def live(home: Home, **facts: Any) -> Iterator[Job]:
    """A new job, alive inside the block. It waits for a collection that is at work to end."""
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
    """Jobs that ended without saying so: killed, or the machine went down."""
    found = []
    for folder in sorted(home.jobs.glob("*")):
        job = Job(folder)
        if (folder / "job.json").exists() and not job.facts.get("done") and is_over(folder):
            found.append(job)
    return found


def alive(home: Home) -> list[Job]:
    """Jobs whose process runs, or one that it started."""
    folders = (folder for folder in sorted(home.jobs.glob("*")) if (folder / "lock").exists())
    return [Job(folder) for folder in folders if not is_over(folder)]


def is_over(folder: Path) -> bool:
    """Whether of the job of this folder no process is left."""
    return locks.is_free(folder / "lock") and locks.is_free(folder / CHILDREN)


def collecting(home: Home) -> AbstractContextManager[None]:
    """Inside the block no job begins; ``alive`` tells those that had begun before. Two collections do not overlap."""
    return _collection(home, shared=False)


def is_collecting(home: Home) -> bool:
    """Whether a new job would have to wait."""
    return not locks.is_free(home.lock(COLLECT))


def _collection(home: Home, *, shared: bool) -> AbstractContextManager[None]:
    return locks.locked(home.ensure().lock(COLLECT), shared=shared)


def _forget_old(home: Home) -> None:
    done = [folder for folder in sorted(home.jobs.glob("*")) if Job(folder).facts.get("done")]
    for folder in done[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
