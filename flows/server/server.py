"""Prefect API for a command: the configured one, the local stack's, or a temporary server.

The temporary server is Prefect's own application on HOME/prefect/prefect.db, behind flows/server/guard.py, without the
services that a one-shot run does not need. This module starts it in place of Prefect's client: then its start runs in parallel
with other work, is reported, has a long limit, and it ends with this process even if that is killed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.server import client, run_log
from remint.errors import OrchestrationError, SettingsError
from remint.runtime import json_log, processes
from remint.runtime.addresses import DISTRUST, loopback_without_proxy, sqlite_address, without_user
from remint.runtime.home import Home
from remint.runtime.locks import locked
from remint.runtime.parent import PARENT, ancestor_pids
from remint.runtime.retry import wait_until
from remint.stores.dvc import last_error_line

START_LIMIT = 180.0  # seconds; the first start on an empty folder migrates Prefect's database

SERVER = (
    "import sys; from remint.runtime.parent import die_with_parent; die_with_parent(); import uvicorn; uvicorn.main(sys.argv[1:])"
)

RESTARTS = 3  # of a killed temporary server; more would not help a server that cannot run

HEARTBEAT = 30  # seconds between heartbeats of a flow run; Prefect's minimum

NO_ADDRESS = "PREFECT_API_URL is not set: set it to the address of the Prefect server (https://host/api)"

# Address of the database of a Prefect server, in its new and its old name.
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")

# Let a run survive an absence of the server, and show the server that the run is alive.
STEADY = {
    "PREFECT_CLIENT_MAX_RETRIES": "7",  # four minutes in all; each wait is twice the one before
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else each late event prints a thousand characters
}

# Turn off the services that one command does not need: the UI and its block types, schedules, late runs.
ONE_SHOT = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


def environment(home: Home) -> dict[str, str]:
    """Return the variables that Prefect and MLflow read at import: state under HOME, and no telemetry."""
    return {
        "PREFECT_HOME": str(home.prefect),
        **_database(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": os.environ.get(
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if json_log.is_wanted() else "CRITICAL"
        ),
        **run_log.environment(),
        **loopback_without_proxy(),  # a proxy does not reach a server on this machine
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        **STEADY,
    }


def _database(home: Home) -> dict[str, str]:
    """Return the variable for the database of a Prefect server, unless it is set, if Prefect's own address of it would fail."""
    address, given = sqlite_address(home.prefect / "prefect.db", "aiosqlite"), any(os.environ.get(name) for name in DATABASES)
    return {DATABASES[0]: address} if not given and "?" in str(home.prefect) else {}


def recorded_addresses(home: Home) -> dict[str, Any]:
    """Return the addresses that ``remint up`` of this home recorded; empty if it does not run."""
    try:
        addresses: dict[str, Any] = json.loads((home.path / "stack.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return addresses


def stack(home: Home) -> dict[str, Any] | None:
    """Return the addresses of the local stack (``remint up``) if it answers, else None."""
    addresses = recorded_addresses(home)
    return addresses if addresses and healthy(addresses["prefect"]) else None


@contextmanager
def api(home: Home, say: Callable[[str], None]) -> Iterator[str]:
    """Set the address of a Prefect API in the environment inside the block, and yield it.

    Must be entered before prefect is imported. ``say`` receives progress messages. Raises SettingsError if the certificate
    file cannot be read, OrchestrationError if the server refuses the credentials or cannot be reached.
    """
    os.environ.update(environment(home))
    given = os.environ.get("PREFECT_API_URL") or (stack(home) or {}).get("prefect")
    if given:
        os.environ["PREFECT_API_URL"] = given
        client.configure_proxy(given)
        served = client.prefect(given)
        if given.startswith("https") and not os.access(served.certificates or "", os.R_OK):
            raise SettingsError(f"PREFECT_API_SSL_CERT_FILE: {served.certificates} cannot be read")
        if client.status(served, client.credentials()) in client.REFUSED:
            raise OrchestrationError(
                f"Prefect's server at {without_user(given)} refuses these credentials: set PREFECT_API_AUTH_STRING (or "
                "PREFECT_API_KEY) to the server's value"
            )
        with unreachable_as_error(given):
            yield given
        return
    with _temporary(home, say) as url:
        try:
            yield url
        finally:
            _drain()
            del os.environ["PREFECT_API_URL"]


@contextmanager
def unreachable_as_error(address: str) -> Iterator[None]:
    """Convert an unreachable server into OrchestrationError: Prefect's client raises httpx's error, or a RuntimeError from it."""
    try:
        yield
    except Exception as error:
        import httpx

        wrapped = isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API")
        reason = error.__cause__ if wrapped else error
        if not isinstance(reason, httpx.TransportError):
            raise
        why = str(reason) or type(reason).__name__
        if DISTRUST in why:
            why = f"its certificate is not trusted here; {client.TRUST}"
        raise OrchestrationError(f"Prefect's server at {without_user(address)} cannot be reached: {why}") from error


@contextmanager
def _temporary(home: Home, say: Callable[[str], None]) -> Iterator[str]:
    home.prefect.mkdir(parents=True, exist_ok=True)
    first = not (home.prefect / "prefect.db").exists()
    say("starting Prefect's temporary server" + (" (the first start creates its database: up to half a minute)" if first else ""))
    began = time.monotonic()
    log = home.prefect / "temporary-server.log"
    with locked(home.lock("prefect-start")):  # two starts at a time would both migrate an empty database
        log.unlink(missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}/api"
        arguments = [
            "--factory",
            "flows.server.guard:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--log-level",
            "error",
            "--lifespan",
            "on",
        ]
        server = _RestartingServer([sys.executable, "-c", SERVER, *arguments], log)
        os.environ["PREFECT_API_URL"] = url  # prefect reads it once, at import; without it prefect starts another server
        client.configure_proxy(url)
        try:
            import prefect.flows  # noqa: F401  slow (a third of the server's start), so in parallel with it

            wait_healthy(url, server.process, log)
        except BaseException:
            server.stop()
            raise
    server.start()
    say(f"Prefect is ready after {time.monotonic() - began:.0f} s")
    try:
        yield url
    finally:
        server.stop()


class _RestartingServer(threading.Thread):
    """A temporary server, and the thread that restarts it if it is killed.

    A run survives a server that comes back. The thread lasts as long as its servers: the kernel ends a child together with
    the thread that started it (die_with_parent).
    """

    def __init__(self, command: list[str], log: Path) -> None:
        super().__init__(name="remint-prefect", daemon=True)
        self.command, self.log, self.environment = command, log, {**os.environ, **ONE_SHOT, PARENT: ancestor_pids()}
        self.over, self.changing = threading.Event(), threading.Lock()
        self.process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(self.command, env=self.environment, stdout=output, stderr=output, start_new_session=True)

    def run(self) -> None:
        for _ in range(RESTARTS):
            self.process.wait()
            with self.changing:
                if self.over.is_set():
                    return
                self.process = self._begin()
        self.over.wait()

    def stop(self) -> None:
        with self.changing:
            self.over.set()
        processes.stop(self.process)


def wait_healthy(url: str, server: subprocess.Popen[bytes], log: Path, limit: float = START_LIMIT) -> None:
    """Wait for an API to answer. Raises OrchestrationError if the server ends (with its last error) or after ``limit`` s."""

    def answers() -> bool:
        if healthy(url):
            return True
        if server.poll() is not None:
            raise OrchestrationError(f"Prefect's server ended while it started: {last_error_line(log)} (its log: {log})")
        return False

    if not wait_until(answers, limit, every=0.1):
        raise OrchestrationError(f"Prefect's server did not answer within {limit:.0f} s (its log: {log})")


def healthy(url: str) -> bool:
    return client.status(client.prefect(url), path="health") == 200


def _drain() -> None:
    """Wait until the buffers of Prefect's client (logs, task states) have reached the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=10)
    APILogWorker.drain_all(timeout=10)


def initialise(home: Home, say: Callable[[str], None]) -> None:
    """Create the databases of Prefect, MLflow and the ledger if they do not exist."""
    from remint.stores.open import open_ledger, open_tracking

    with api(home, say):
        say("creating MLflow's database and the ledger")
        open_tracking(home).initialise()
        open_ledger(home)
    say(f"{home.path} is ready")
