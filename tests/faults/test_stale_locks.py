"""Four kinds of locks left by a killed process: the next process continues without help, and a live holder keeps its lock.

The kinds: git's (a ref, the index), dvc's (tests/faults/test_data_flips.py), kernel locks, and leases.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from remint.errors import Busy, VersioningError
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git, uncommitted
from remint.stores.ledger import leases
from tests.support.processes import wait_for
from tests.support.trials import Trials

# Holds all locks of a job: its own, the registry's, and the lease of its pipeline. Writes its id, and sleeps.
HOLDER = """
import time
from pathlib import Path
from remint.runtime import jobs
from remint.stores.ledger import leases
from remint.runtime.home import Home
from remint.stores.mlflow.door import exclusive_lock
home = Home(Path.cwd(), Path("home").absolute())
with jobs.live(home, pipeline="m", flow_run="") as job, exclusive_lock(home.lock("registry"), "m"):
    with leases.held(home, "m", leases.Holder.of("m", job), print):
        Path("held").write_text(job.id)
        time.sleep(600)
"""


@pytest.fixture
def repository(make_repository: Callable[[dict[str, str]], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(git, "STALE", 0.3)
    return make_repository({"file": "a\n"})


@pytest.mark.case(23)
def test_a_lock_that_git_left(trials: Trials, repository: Path) -> None:
    (repository / ".git/index.lock").touch()  # it blocks a person's git; a job does not need the index
    for trial in trials(short=2, full=20):
        (repository / "file").write_text(f"{trial.random.random()}\n")
        tree = uncommitted.commit_of_tree(repository).sha
        git.run_git(repository, "update-ref", "-d", f"refs/remint/{tree}")
        lock = repository / f".git/refs/remint/{tree}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(trial.random.choice(["", tree[:17], f"{tree}\n"]))
        commit = uncommitted.commit_of_tree(repository)
        assert commit.sha == tree and git.run_git(repository, "rev-parse", f"refs/remint/{tree}").strip() == tree
        assert not lock.exists()
        trial.note(recovered=1)


@pytest.mark.case(23)
def test_a_lock_that_a_live_git_holds(trials: Trials, repository: Path) -> None:
    """``git update-ref --stdin`` holds the lock from ``prepare`` to ``commit``."""
    for trial in trials(short=1, full=10):
        (repository / "file").write_text(f"live {trial.random.random()}\n")
        commit = uncommitted.commit_of_tree(repository).sha
        git.run_git(repository, "update-ref", "-d", f"refs/remint/{commit}")
        holder = subprocess.Popen(
            ["git", "update-ref", "--stdin"], cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdin and holder.stdout
        holder.stdin.write(f"start\nupdate refs/remint/{commit} {commit}\nprepare\n")
        holder.stdin.flush()
        assert [holder.stdout.readline() for _ in range(2)] == ["start: ok\n", "prepare: ok\n"]
        with pytest.raises(VersioningError, match="lock"):
            git.pin(repository, commit)
        holder.stdin.write("commit\n")
        holder.stdin.close()
        assert holder.wait() == 0
        git.pin(repository, commit)
        trial.note(live_holders_broken=0)


@pytest.mark.case(23)
def test_locks_of_the_kernel_and_the_lease_of_a_killed_job(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "POLL", 0.05)
    for trial in trials(short=2, full=20):
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        home = Home(folder, folder / "home").ensure()
        holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=folder)
        name = wait_for(folder / "held")
        with pytest.raises(Busy):  # it lives
            _take_lease(home, waits=False)
        assert jobs.dead(home) == [] and _registry_is_held(home)
        time.sleep(trial.random.uniform(0.0, 0.2))
        holder.kill()
        holder.wait()
        assert _take_lease(home, waits=True) == 2
        assert [job.id for job in jobs.dead(home)] == [name] and not _registry_is_held(home)
        trial.note(recovered=1, live_holders_broken=0)


def _take_lease(home: Home, *, waits: bool) -> int:
    with jobs.live(home, pipeline="m", flow_run="") as job:
        holder = leases.Holder.of("m", job)
        with leases.held(home, "m", holder, print, waits=lambda _: waits) as lease:
            return lease.term


def _registry_is_held(home: Home) -> bool:
    (path,) = home.lock("registry").parent.glob("registry-*")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
