"""Audit of Prefect, and the whole audit for ``remint audit``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from flows.server import server
from remint.errors import OrchestrationError
from remint.maintenance import audit
from remint.maintenance.audit import Audit, Fault, fault, last, unreachable
from remint.runtime.home import Home
from remint.settings.params import load_params

RISK = "It looks like a run that is still working."


def run_audit(home: Home, say: Callable[[str], None], *, repair: bool, deep: bool, prefect: bool) -> Audit:
    """Audit all stores of this home. ``repair``: make the safe repairs first.

    ``deep``: see remint.maintenance.audit. ``prefect``: audit Prefect too; if no server is up, a temporary one is started.
    """
    with _prefect(home, say, prefect) as ask:

        def look() -> Audit:
            return audit.run_audit(home, deep=deep, say=say).with_faults(ask())

        found = look()
        found = audit.repair(found, look, say) if repair else found
    last.keep(home, found, deep=deep)
    return found


@contextmanager
def _prefect(home: Home, say: Callable[[str], None], wanted: bool) -> Iterator[Callable[[], list[Fault]]]:
    """Yield a function that audits Prefect, while its server is up."""
    given, stack = os.environ.get("PREFECT_API_URL"), (server.stack(home) or {}).get("prefect")
    nothing = not given and not stack and not (home.prefect / "prefect.db").exists()
    if not wanted or nothing:  # no flow ever ran in this home
        yield list
        return
    if given and not server.healthy(given):
        error = OrchestrationError(f"Prefect's server at {given} does not answer")
        yield lambda: [unreachable("Prefect", error)]
        return
    try:
        opened = server.api(home, say)
        opened.__enter__()
    except OrchestrationError as error:
        why = unreachable("Prefect", error)
        yield lambda: [why]
        return
    try:
        yield lambda: [*flow_runs(home, own_server=not given or given == stack), *leftover_deployments(home)]
    finally:
        opened.__exit__(None, None, None)


def flow_runs(home: Home, *, own_server: bool) -> list[Fault]:
    """Return a fault for each open flow run without a process."""
    import httpx

    from flows.server import reconcile

    try:
        found = reconcile.orphan_runs(home, own_server=own_server)
    except httpx.HTTPError as error:
        return [unreachable("Prefect", OrchestrationError(f"Prefect's server failed: {error}"))]
    return [_fault(home, each) for each in found]


def leftover_deployments(home: Home) -> list[Fault]:
    """Return a fault for each deployment of this clone that params.yaml does not ask for."""
    import httpx
    from prefect.client.orchestration import get_client

    from flows.stack import deployments

    try:
        with get_client(sync_client=True) as client:
            found = deployments.existing(client)
    except httpx.HTTPError as error:
        return [unreachable("Prefect's deployments", OrchestrationError(f"Prefect's server failed: {error}"))]
    return [
        fault(
            "deployment",
            f"deployment {name}",
            "It was made by remint deploy, and params.yaml no longer asks for it.",
            "Its schedule goes on starting runs. They fail if the pipeline is gone.",
            "remint deploy or remint audit --repair removes it.",
            mend=partial(deployments.remove, found[name].id),
        )
        for name in deployments.leftovers(home, load_params(home.repository), found)
    ]


def _fault(home: Home, left: Any) -> Fault:
    from flows.server import reconcile

    died = f"process {left.job.facts['pid']} of its job {left.job.id} has died" if left.job else "it has no process"
    return fault(
        "flow_run",
        f"flow run {left.name} ({left.id})",
        f"It is {left.state}, and {died}.",
        RISK,
        "remint audit --repair ends it as Crashed, and closes everything that its job left open.",
        mend=lambda: reconcile.end(home, left.job) if left.job else reconcile.crash(left.id, "it had no process"),
    )
