"""Worker: it runs due flow runs of the Prefect server at PREFECT_API_URL.

`remint up` starts one for its own server. That worker waits for the server, deploys the schedules of params.yaml, and ends
runs that dead processes left open. A team's host starts a worker for a shared server by: python -m flows.stack.worker

Prefect's worker kills its flows at once when it is stopped. So on SIGTERM this module pauses it while the flows write a
checkpoint and hand themselves back to Prefect. Then it stops the worker.
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

from flows.server import client, run_log, server, stopping
from flows.server.reconcile import sweep
from flows.stack.deploy import deploy, describe, plan
from flows.stack.deployments import POOL
from remint.errors import SettingsError
from remint.runtime import json_log, processes
from remint.runtime.home import Home
from remint.runtime.parent import PARENT, ancestor_pids, die_with_parent
from remint.runtime.retry import wait_until
from remint.settings.params import load_params
from remint.stores import git

# Prefect's own command, in a process that ends with this one and needs no proxy for a server on this machine.
WORKER = (
    "import os, runpy; from remint.runtime.parent import die_with_parent; from flows.server import client; die_with_parent(); "
    "client.configure_proxy(os.environ['PREFECT_API_URL']); runpy.run_module('prefect', run_name='__main__', alter_sys=True)"
)
GRACE = processes.GRACE + stopping.PATIENCE + 5.0  # seconds that flows have after SIGTERM, with their own waits


def main() -> None:
    die_with_parent()
    repository = git.repository_of(Path.cwd())
    home = Home.of(repository)
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise SystemExit("error: PREFECT_API_URL is not set: set it to the address of the Prefect server (https://host/api)")
    try:
        client.configure_proxy(address)
    except SettingsError as error:
        raise SystemExit(f"error: {error}") from None
    own = server.recorded_addresses(home).get("prefect") == address
    if own:
        wait_until(lambda: server.healthy(address), server.START_LIMIT, every=0.5)
        params = load_params(repository)
        planned = plan(home, params, git.branch_of(repository))
        for change in planned:
            json_log.say(describe(change))
        try:
            deploy(home, params, planned)
        except SettingsError as error:  # the block of notify: is missing; all else is deployed by then
            json_log.say(f"warning: {error}")
    for line in sweep(home, own_server=own):
        json_log.say(line)
    name = "local" if own else platform.node()
    prefect = ["worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    with processes.interruptible():
        # In a separate session: signals to this process group reach the worker only through this process.
        environment = {**os.environ, **run_log.environment(), PARENT: ancestor_pids()}
        worker = subprocess.Popen([sys.executable, "-c", WORKER, *prefect], env=environment, start_new_session=True)
        while worker.poll() is None and not processes.stopping.wait(0.2):
            pass
        if worker.poll() is None:
            _stop(worker)
    raise SystemExit(worker.wait())


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Stop the flows of a worker, then the worker."""
    with suppress(psutil.Error):  # the worker has ended by itself; a paused one keeps its children, also those that ended
        worker.send_signal(signal.SIGSTOP)
        flows = psutil.Process(worker.pid).children()
        for flow in flows:
            flow.terminate()
        wait_until(lambda: not any(_is_running(flow) for flow in flows), GRACE, every=0.1)
    worker.send_signal(signal.SIGCONT)
    worker.terminate()


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # a paused worker does not reap its children
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
