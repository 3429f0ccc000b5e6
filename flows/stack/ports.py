"""Ports of the local stack: read from the environment, and checked before a server starts."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import closing

import psutil  # type: ignore[import-untyped, unused-ignore]

from remint.errors import OrchestrationError, SettingsError
from remint.runtime.addresses import LOOPBACK

VARIABLES = {"prefect": "REMINT_PREFECT_PORT", "mlflow": "REMINT_MLFLOW_PORT", "console": "REMINT_CONSOLE_PORT"}
DEFAULTS = {"prefect": 4200, "mlflow": 5000, "console": 8000}
NAMES = {"prefect": "Prefect", "mlflow": "MLflow", "console": "the console"}


def port_of(server: str) -> int:
    """Return the port of a server: "prefect", "mlflow" or "console". Raises SettingsError if its variable holds no port."""
    value = os.environ.get(VARIABLES[server]) or str(DEFAULTS[server])
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 2**16):
        raise SettingsError(f"{VARIABLES[server]}: expected a port from 1 to 65535, not '{value}'")
    return int(value)


def check_free(ports: Mapping[str, int]) -> None:
    """Raise OrchestrationError, in one line, if a server cannot have its port; SettingsError if two have the same."""
    for port, count in Counter(ports.values()).items():
        if count > 1:
            names = " and ".join(VARIABLES[server] for server in ports if ports[server] == port)
            raise SettingsError(f"{names} are the same port, {port}: give each server its own")
    refusals = {server: _refusal(port) for server, port in ports.items()}
    lines = [f"{why}, and {NAMES[server]} needs it ({VARIABLES[server]})" for server, why in refusals.items() if why]
    if lines:
        raise OrchestrationError(f"{'; '.join(lines)}: set the variable to a free port, or stop that process")


def _refusal(port: int) -> str | None:
    """Return why a server cannot listen on a port of this machine, or None if it can."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a connection that just ended does not count
        try:
            probe.bind((LOOPBACK[0], port))
            probe.listen()
        except PermissionError:
            return f"port {port} is not allowed to this user"
        except OSError:
            return f"port {port} is taken by {_holder(port)}"
    return None


def _holder(port: int) -> str:
    """Return the name and number of the process that listens on a port, as far as this user may see it."""
    try:
        found = [each for each in psutil.net_connections(kind="tcp") if each.laddr and each.laddr.port == port]
        pids = [each.pid for each in sorted(found, key=lambda each: each.status != psutil.CONN_LISTEN) if each.pid]
        if pids:
            return f"{psutil.Process(pids[0]).name()} (process {pids[0]})"
    except psutil.Error:
        pass  # some systems show this to administrators only
    return "a process that this user may not see"
