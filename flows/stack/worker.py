"""Worker: it runs due flow runs of the Prefect server at PREFECT_API_URL.

`remint up` starts one for its own server. That worker waits for the server, deploys the schedules of params.yaml, and ends
runs that dead processes left open. A team's host starts a worker for a shared server, and for any of its pools, by: remint
worker --pool NAME. Only a worker of the pool "remint" needs a clone.

Prefect's worker kills its flows at once when it is stopped. So on SIGTERM this module pauses it while the flows write a
checkpoint and hand themselves back to Prefect. Then it stops the worker.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped, unused-ignore]

from flows.server import client, place, run_log, server, stopping
from flows.server.reconcile import sweep
from flows.stack.deploy import deploy, describe, plan
from flows.stack.deployments import POOL
from flows.stack.pools import install_steps
from remint.errors import SettingsError, UserError
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
TIDY = 60.0  # seconds between two looks for runs whose process is gone
GRACE = processes.GRACE + stopping.PATIENCE + 5.0  # seconds that flows have after SIGTERM, with their own waits


def main(home: Home, pool: str = POOL) -> None:
    """Run a worker of a pool until it is stopped. PREFECT_API_URL is set, and was so before Prefect was imported."""
    die_with_parent()
    address = os.environ["PREFECT_API_URL"]
    client.configure_proxy(address)
    own = server.recorded_addresses(home).get("prefect") == address
    if own:
        wait_until(lambda: server.healthy(address), server.START_LIMIT, every=0.5)
    with server.unreachable_as_error(address):
        if own and pool == POOL:
            _deploy(home)
        install_steps(pool)
        _tidy(home, own)
    name = "local" if own else platform.node()
    prefect = ["worker", "start", "--pool", pool, "--name", name if pool == POOL else f"{name} {pool}"]
    with processes.interruptible():
        # In a separate session: signals to this process group reach the worker only through this process.
        worker = subprocess.Popen([sys.executable, "-c", WORKER, *prefect], env=_environment(home), start_new_session=True)
        tidied = time.monotonic()
        while worker.poll() is None and not processes.stopping.wait(0.2):
            if pool != POOL and time.monotonic() - tidied > TIDY:  # elsewhere the flow tidy does it
                _tidy(home, own)
                tidied = time.monotonic()
        if worker.poll() is None:
            _stop(worker)
    raise SystemExit(worker.wait())


def _environment(home: Home) -> dict[str, str]:
    """Return the environment of the worker, which its flows get: their deployments name no place of this host."""
    return {
        **os.environ,
        **run_log.environment(),
        PARENT: ancestor_pids(),
        place.WORKER: str(home.repository),
        "REMINT_HOME": str(home.path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _deploy(home: Home) -> None:
    params = load_params(home.repository)
    try:
        planned = plan(home, params, git.branch_of(home.repository))
        for change in planned:
            json_log.say(describe(change))
        deploy(home, params, planned)
    except SettingsError as error:  # a pool is missing, so nothing is deployed; or the block of notify:, after all else
        json_log.say(f"warning: {error}")


def _tidy(home: Home, own: bool) -> None:
    """End the runs that dead processes of this home left open. If Prefect is away, the next look does it."""
    try:
        for line in sweep(home, own_server=own):
            json_log.say(line)
    except httpx.HTTPError as error:
        json_log.say(f"warning: Prefect's server cannot be reached: {error}")


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
    try:
        if not os.environ.get("PREFECT_API_URL"):
            raise SettingsError(server.NO_ADDRESS)
        main(place.home_to_serve(with_clone=True))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
