"""The worker of the local stack: waits for the server, gives it the schedules of params.yaml, takes up what processes that
died have left, and runs what comes due.

SIGTERM ends it from its far end. Prefect's worker, told to stop, kills its flows on the spot; so it is held still while
they have their grace, write a checkpoint and hand themselves back to Prefect, and is told when they are gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from flows.server import server, stopping
from flows.server.reconcile import sweep
from flows.stack.deploy import POOL, deploy, said
from remint.runtime import processes
from remint.runtime.home import Home
from remint.runtime.parent import PARENT, ancestor_pids, die_with_parent
from remint.runtime.retry import wait_until
from remint.settings.params import load_params
from remint.stores import git

# The signal at its parent's death stays with a process that becomes another program.
WORKER = (
    "import os, sys; from remint.runtime.parent import die_with_parent; die_with_parent(); os.execv(sys.executable, sys.argv[1:])"
)
GRACE = processes.GRACE + stopping.PATIENCE + 5.0  # seconds that flows have after SIGTERM, with all that they wait for


def main() -> None:
    die_with_parent()
    repository = git.repository_of(Path.cwd())
    home = Home.of(repository)
    wait_until(lambda: server.stack(home) is not None, server.START_LIMIT, every=0.5)
    branch = git.branch_of(repository)
    for entry in deploy(home, load_params(repository), branch):
        print(said(entry), flush=True)
    for line in sweep(home, own=True):
        print(line, flush=True)
    prefect = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"]
    with processes.interruptible():
        # In a session of its own: what is sent to our group reaches it through us.
        environment = {**os.environ, PARENT: ancestor_pids()}
        worker = subprocess.Popen([sys.executable, "-c", WORKER, *prefect], env=environment, start_new_session=True)
        while worker.poll() is None and not processes.stopping.wait(0.2):
            pass
        if worker.poll() is None:
            _stop(worker)
    raise SystemExit(worker.wait())


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Ends the flows of a worker, then the worker."""
    with suppress(psutil.Error):
        worker.send_signal(signal.SIGSTOP)
        flows = psutil.Process(worker.pid).children()
        for flow in flows:
            flow.terminate()
        wait_until(lambda: not any(_runs(flow) for flow in flows), GRACE, every=0.1)
    worker.send_signal(signal.SIGCONT)
    worker.terminate()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # the worker, held still, buries nobody
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
