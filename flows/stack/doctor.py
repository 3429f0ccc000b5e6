"""Checks of Prefect and of open servers, and the whole check for ``remint doctor``.

Servers are asked over plain HTTP requests (flows/server/client.py), without an import of Prefect or MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from flows.server import client, place, server
from flows.server.client import Server
from flows.stack import production
from remint.maintenance import doctor
from remint.maintenance.doctor import Symptom
from remint.runtime.addresses import is_loopback, without_user
from remint.runtime.home import Home
from remint.settings.params import Params


def run_doctor(home: Home, params: Params | None, *, real: bool = False) -> list[Symptom]:
    """Run all checks of this machine and its servers. ``real``: also try every part, by probes that are deleted again."""
    found, servers = list(doctor.examine(home, params)), _servers(home)
    for served in servers:
        found += _open(served)
    found += _prefect(home, params)
    return [*found, *production.examine(home, params, servers)] if real else found


def _servers(home: Home) -> list[Server]:
    """Return the servers whose addresses are set, and those of the local stack if it is up."""
    stack = server.stack(home) or {}
    prefect = {os.environ.get("PREFECT_API_URL"), stack.get("prefect")}
    mlflow = {home.tracking_uri if home.tracking_uri.startswith("http") else None, stack.get("mlflow")}
    return [
        *(client.prefect(each) for each in prefect if each),
        *(client.mlflow(each) for each in mlflow if each),
    ]


def _open(served: Server) -> Iterator[Symptom]:
    """Check whether other machines reach a server without authentication, or could read its traffic."""
    where = without_user(served.address)
    if not _elsewhere(where):
        return
    if client.status(served) == 200:
        yield Symptom(
            about="server",
            level="warning",
            what=f"{served.name} at {where} answers other machines without authentication.",
            why="Everyone who reaches Prefect's API can run commands on its workers."
            if served.name == "Prefect"
            else "Everyone who reaches it can read, change and delete every run and registered model.",
            do="Turn on its authentication, or make it listen on 127.0.0.1 only: docs/how-to/production.md",
        )
    if where.startswith("http://"):
        yield Symptom(
            about="server",
            level="warning",
            what=f"{served.name} at {where} is used over plain HTTP.",
            why="Anyone on the network path can read and change passwords and models.",
            do="Put a proxy with TLS in front of it, and use its https:// address: docs/how-to/production.md",
        )


def _prefect(home: Home, params: Params | None) -> Iterator[Symptom]:
    """Check Prefect's server, and that a worker runs the schedules."""
    given = os.environ.get("PREFECT_API_URL")
    address = given or (server.stack(home) or {}).get("prefect")
    scheduled = [
        name for name, pipeline in (params.pipelines if params else {}).items() if pipeline.schedule or pipeline.triggers.on
    ]
    if address is None:
        if not (home.prefect / "prefect.db").exists():
            yield Symptom(
                about="prefect",
                level="note",
                what="The database of the temporary Prefect server does not exist yet.",
                why="The first run makes it, and takes about ten seconds longer.",
                do="remint init",
            )
        if scheduled:
            yield Symptom(
                about="worker",
                level="note",
                what=f"No worker runs the schedules of {', '.join(scheduled)} now.",
                why="A schedule starts runs only while a Prefect server and a worker are up.",
                do="remint up, or docs/how-to/production.md",
            )
        return
    served = client.prefect(address)
    answer = client.status(served, client.credentials())
    if answer != 200:
        refuses, distrusted = answer in client.REFUSED, answer is None and client.distrusted(served)
        yield Symptom(
            about="prefect",
            level="missing",
            what=f"Prefect at {without_user(address)} "
            + (
                "refuses these credentials."
                if refuses
                else "shows a certificate that is not trusted here."
                if distrusted
                else f"does not answer{f' ({answer})' if answer else ''}."
            ),
            why="No run can begin.",
            do="Set PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) to the server's value."
            if refuses
            else f"{client.TRUST[0].upper()}{client.TRUST[1:]}."
            if distrusted
            else "Start the server, or correct PREFECT_API_URL (https://host/api); unset it for a temporary one.",
        )
        return
    for pool, pipelines in needed_pools(params).items():
        if not online(served, pool):
            yield Symptom(
                about="worker",
                level="missing",
                what=f"No worker of the pool {pool} is online.",
                why=f"Schedules or steps of {', '.join(pipelines)} do not run.",
                do="remint up, or on another host, in a clone: remint worker"
                if pool == place.POOL
                else f"remint worker --pool {pool}, on a host of it",
            )


def needed_pools(params: Params | None) -> dict[str, list[str]]:
    """Return the work pools that pipelines need a worker of, with the names of these."""
    found: dict[str, list[str]] = {}
    for name, pipeline in (params.pipelines if params else {}).items():
        pools = {pool.pool for pool in pipeline.resources.pools.values()}
        if pipeline.schedule or pipeline.triggers.on:
            pools.add(pipeline.resources.default.pool if pipeline.resources.default else place.POOL)
        for pool in sorted(pools):
            found.setdefault(pool, []).append(name)
    return found


def online(served: Server, pool: str) -> int:
    """Return the number of workers of a pool that are online; 0 without an answer."""
    path = f"work_pools/{pool}/workers/filter"
    try:
        answer = client.ask(served, path, {**client.credentials(), "Content-Type": "application/json"}, b"{}")
        found = answer.json() if answer.is_success else []
    except (client.NoAnswer, ValueError):
        return 0
    return sum(each.get("status") == "ONLINE" for each in found if isinstance(each, dict))


def _elsewhere(address: str) -> bool:
    """Return whether other machines reach an address: it names another host, or its port listens on a public interface."""
    parts = urlsplit(address)
    if not is_loopback(parts.hostname or ""):
        return True
    import psutil  # type: ignore[import-untyped, unused-ignore]

    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        listening = [each.laddr for each in psutil.net_connections(kind="inet") if each.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:  # some systems show this to administrators only
        return False
    return any(place.port == port and not is_loopback(place.ip) for place in listening)
