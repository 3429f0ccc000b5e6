"""Place of a flow's process: its clone of the repository, and its home.

On the pool of `remint up` it is the clone that the deployment names. On any other pool the deployment names the address of the
repository, and the process clones it into its own folder, by git's own credentials. A step on a pool needs no clone.
"""

from __future__ import annotations

import os
from pathlib import Path

from remint.errors import RepositoryError
from remint.runtime.home import Home
from remint.stores import git

POOL = "remint"  # the pool of remint up, for which no pipeline needs resources:
REPOSITORY, BRANCH = "REMINT_REPOSITORY", "REMINT_BRANCH"  # of a deployment: what its process clones
WORKER = "REMINT_WORKER"  # folder in which the worker was started


def home_of_flow() -> Home:
    """Return the home of this process. Clone the repository first, if the deployment names one."""
    address = os.environ.pop(REPOSITORY, None)
    if address:
        os.chdir(git.clone(address, os.environ.get(BRANCH, ""), Path.cwd() / "clone"))
    return Home.of(git.repository_of(Path.cwd())).ensure()


def home_to_serve(*, with_clone: bool) -> Home:
    """Return the home of a worker: of the clone around this folder, or of this folder, if it needs no clone and is in none."""
    try:
        return Home.of(git.repository_of(Path.cwd())).ensure()
    except RepositoryError:
        if with_clone:
            raise
        return Home.of(Path.cwd()).ensure()


def home_of_worker() -> Home:
    """Return the home of the worker that started this process, for a flow that needs no clone."""
    return Home.of(Path(os.environ.get(WORKER) or Path.cwd())).ensure()
