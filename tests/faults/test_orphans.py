"""After a flow or its worker is killed, no descendant is alive after five seconds, and no other job starts before that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remint.runtime import jobs
from remint.runtime.home import Home
from tests.support.processes import is_alive
from tests.support.trials import Trials

DEADLINE = 5.0  # seconds
PROCESSES = 7

# worker -> flow -> dvc -> a shell that stays -> trainer -> torchrun -> ranks. Trainer and ranks ignore SIGTERM.
TREE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from remint.runtime import jobs
from remint.stores.ledger import leases
from remint.runtime import processes
from remint.runtime.home import Home
from remint.runtime.parent import PARENT
from remint.runtime.parent import ancestor_pids
from remint.runtime.parent import die_with_parent

def command_of(*roles):
    return [sys.executable, __file__, *roles]

def run(*command):
    folder = Path(os.environ["JOB"]) if "JOB" in os.environ else Path(".")
    processes.run_process(command, cwd=Path.cwd(), env=os.environ, log=folder / "log")

role = sys.argv[1]
if role != "worker":
    die_with_parent()
if role in ("trainer", "rank"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("pids", f"{role}-{os.getpid()}").touch()
if role == "worker":
    subprocess.run(command_of("flow"), env={**os.environ, PARENT: ancestor_pids()})
elif role == "flow":
    home = Home(Path.cwd(), Path("home").absolute())
    with jobs.live(home, pipeline="m", flow_run="") as job, leases.held(home, "m", leases.Holder.of("m", job), print):
        os.environ["JOB"] = str(job.folder)
        run(*command_of("dvc"))
elif role == "dvc":
    subprocess.run(["/bin/sh", "-c", f"{sys.executable} {__file__} trainer; true"])
elif role == "trainer":
    run(*command_of("torchrun"))
elif role == "torchrun":
    for rank in [subprocess.Popen(command_of("rank"), start_new_session=True) for _ in range(2)]:
        rank.wait()
else:
    time.sleep(600)
"""


@pytest.mark.case(6)
def test_nothing_outlives_a_flow_or_its_worker_for_five_seconds(trials: Trials, tmp_path: Path) -> None:
    for trial in trials(short=2, full=50):
        victim = ("flow", "worker")[trial.number % 2]
        folder = tmp_path / str(trial.number)
        (folder / "pids").mkdir(parents=True)
        (folder / "tree.py").write_text(TREE)
        home = Home(folder, folder / "home").ensure()
        worker = subprocess.Popen([sys.executable, str(folder / "tree.py"), "worker"], cwd=folder)
        while len(list((folder / "pids").iterdir())) < PROCESSES:
            assert worker.poll() is None
            time.sleep(0.02)
        pids = _pids(folder)
        time.sleep(trial.random.uniform(0.0, 0.2))
        (job,) = jobs.alive(home)
        os.kill(pids[victim][0], 9)
        killed = time.monotonic()
        descendants = [pid for role, each in pids.items() if role != "worker" for pid in each]
        while any(map(is_alive, descendants)):
            assert time.monotonic() - killed < (DEADLINE if trials.soak else 4 * DEADLINE), [
                role for role, each in pids.items() if any(map(is_alive, each))
            ]
            writers = [pid for role in ("trainer", "rank") for pid in pids[role] if is_alive(pid)]
            assert not (jobs.is_over(job.folder) and any(map(is_alive, writers))), "a job is not over while its trainer lives"
            time.sleep(0.02)
        worker.wait()
        assert [each.id for each in jobs.dead(home)] == [job.id]
        trial.note(killed=1, alive_after_5_s=0, two_writers=0)


def _pids(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in (folder / "pids").iterdir():
        role, pid = path.name.split("-")
        found.setdefault(role, []).append(int(pid))
    return found
