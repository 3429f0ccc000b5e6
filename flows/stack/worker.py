"""The worker: it runs what comes due on the Prefect server that PREFECT_API_URL names.

`remint up` starts one for its own server. That one waits for the server, gives it the schedules of params.yaml, and ends
runs that dead processes left open. A host of a team starts one of a shared server: python -m flows.stack.worker

Prefect's worker kills its flows at once when it is told to stop. So on SIGTERM it is paused while its flows have their
grace, write a checkpoint and hand themselves back to Prefect. It is stopped when they are gone.
"""

from __future__ import annotations

import os
import platform
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
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise SystemExit("error: PREFECT_API_URL is not set: it names the server whose runs this worker starts")
    own = server.noted(home).get("prefect") == address
    if own:
        wait_until(lambda: server.healthy(address), server.START_LIMIT, every=0.5)
        for entry in deploy(home, load_params(repository), git.branch_of(repository)):
            print(said(entry), flush=True)
    for line in sweep(home, own=own):
        print(line, flush=True)
    name = "local" if own else platform.node()
    prefect = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
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
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # a paused worker does not reap its children
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
