"""A Prefect API to run under: the one that is set, the local stack's, or a temporary one of our own.

The temporary server is Prefect's own application on HOME/prefect/prefect.db, behind flows/server/guard.py, with what a one-shot
run does not need turned off. It is started by us, not by Prefect's client, so that its start runs beside other work, is
seen, is not cut short, and ends with us even when we are killed.
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

from flows.server import client
from remint.errors import OrchestrationError, SettingsError
from remint.runtime import processes
from remint.runtime.addresses import DISTRUST, loopback_without_proxy, without_user
from remint.runtime.home import Home
from remint.runtime.locks import locked
from remint.runtime.parent import PARENT, ancestor_pids
from remint.runtime.retry import wait_until
from remint.stores.dvc import last_error_line

START_LIMIT = 180.0  # seconds; the first start on an empty folder migrates Prefect's database

SERVER = (
    "import sys; from remint.runtime.parent import die_with_parent; die_with_parent(); import uvicorn; uvicorn.main(sys.argv[1:])"
)

RESTARTS = 3  # of a temporary server that was killed: of one that cannot live more would not help

HEARTBEAT = 30  # seconds between two signs of life of a flow run; Prefect takes none that is shorter

# What lets a run live through a server that is away, and the server know that it lives.
STEADY = {
    "PREFECT_CLIENT_MAX_RETRIES": "7",  # four minutes, each wait twice the one before
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else each event that is late, on the terminal, in a thousand characters
}

# What a server that lives for one command does not need: block types for a UI that nobody opens, schedules, late runs.
ONE_SHOT = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


def environment(home: Home) -> dict[str, str]:
    """Variables that Prefect and MLflow read when they are imported: state under HOME, and nobody is called."""
    return {
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": os.environ.get("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL"),
        **loopback_without_proxy(),  # a proxy does not reach a server on this machine
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        **STEADY,
    }


def noted(home: Home) -> dict[str, Any]:
    """Addresses that ``remint up`` of this home wrote down; none where it does not run."""
    try:
        addresses: dict[str, Any] = json.loads((home.path / "stack.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return addresses


def stack(home: Home) -> dict[str, Any] | None:
    """Addresses of the local stack (``remint up``) where it is up."""
    addresses = noted(home)
    return addresses if addresses and healthy(addresses["prefect"]) else None


@contextmanager
def api(home: Home, say: Callable[[str], None]) -> Iterator[str]:
    """The address of a Prefect API, which is set in the environment inside the block.

    Must be entered before prefect is imported. ``say`` is told what is waited for.
    """
    os.environ.update(environment(home))
    given = os.environ.get("PREFECT_API_URL") or (stack(home) or {}).get("prefect")
    if given:
        os.environ["PREFECT_API_URL"] = given
        served = client.prefect(given)
        if given.startswith("https") and not os.access(served.certificates or "", os.R_OK):
            raise SettingsError(f"PREFECT_API_SSL_CERT_FILE: {served.certificates} cannot be read")
        if client.status(served, client.credentials()) in client.REFUSED:
            raise OrchestrationError(
                f"Prefect's server at {without_user(given)} refuses these credentials: set PREFECT_API_AUTH_STRING (or "
                "PREFECT_API_KEY) as the server has it"
            )
        with _door(given):
            yield given
        return
    with _temporary(home, say) as url:
        try:
            yield url
        finally:
            _drain()
            del os.environ["PREFECT_API_URL"]


@contextmanager
def _door(address: str) -> Iterator[None]:
    """A server that cannot be reached as one of our errors: Prefect's client gives httpx's, or a bare RuntimeError around it."""
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
    say("starting Prefect's temporary server" + (" (its first start makes its database: up to half a minute)" if first else ""))
    began = time.monotonic()
    log = home.prefect / "temporary-server.log"
    with locked(home.lock("prefect-start")):  # two at a time would both migrate an empty database
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
        server = _Attended([sys.executable, "-c", SERVER, *arguments], log)
        os.environ["PREFECT_API_URL"] = url  # prefect reads it once, when it is imported: else it starts a server of its own
        try:
            import prefect.flows  # noqa: F401  its import takes as long as a third of the server's start: side by side

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


class _Attended(threading.Thread):
    """A temporary server. Once this thread is started, it starts the server again where that is killed.

    Nobody else would, and a run lives through a server that comes back. The thread lasts as long as what it started: the
    kernel ends a child with the thread that made it (die_with_parent).
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
    """Waits for an API to answer. Raises OrchestrationError with the server's last words, or after ``limit`` seconds."""

    def answers() -> bool:
        if healthy(url):
            return True
        if server.poll() is not None:
            raise OrchestrationError(f"Prefect's server ended while it started: {last_error_line(log)} (all of it: {log})")
        return False

    if not wait_until(answers, limit, every=0.1):
        raise OrchestrationError(f"Prefect's server did not answer within {limit:.0f} s (its log: {log})")


def healthy(url: str) -> bool:
    return client.status(client.prefect(url), path="health") == 200


def _drain() -> None:
    """Waits until what Prefect's client still holds (logs, task states) has reached the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=10)
    APILogWorker.drain_all(timeout=10)


def initialise(home: Home, say: Callable[[str], None]) -> None:
    """Makes the databases of Prefect, MLflow and the ledger where they are not there yet."""
    from remint.stores.open import open_ledger, open_tracking

    with api(home, say):
        say("making MLflow's database and the ledger")
        open_tracking(home).initialise()
        open_ledger(home)
    say(f"{home.path} is ready")
