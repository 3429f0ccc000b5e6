"""The care that Prefect's server has a worker take of runs whose process is gone: `remint deploy` installs it.

Two automations of the server start a run of tidy/remint

    crashed    a worker saw the process of a run end, and said so
    silent     nothing was heard of a run for SILENT seconds: no heartbeat, no state

and that run looks at what is true, which the server cannot: which jobs the kernel says are alive (remint.runtime.jobs). So an
automation that fires for nothing, after the server was away or a clock jumped, touches no healthy run.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.server import server
from flows.server.reconcile import FLOWS, sweep
from remint.runtime.home import Home
from remint.stores import git

SILENT = 5 * server.HEARTBEAT  # seconds; a server that is away for a minute misses no more than three heartbeats
ALIVE = {f"prefect.flow-run.{word}" for word in ("heartbeat", "Pending", "Submitting", "Running", "Retrying", "Cancelling")}


@flow(name="tidy", persist_result=False)
def tidy() -> list[str]:
    """Gives what dead processes of this home left open an end, and lets the deployed runs among them go on; a line each."""
    home = Home.of(git.repository_of(Path.cwd())).ensure()
    return sweep(home, own=os.environ.get("PREFECT_API_URL") == (server.stack(home) or {}).get("prefect"))


def install(deployment: UUID) -> None:
    """Makes the two automations, or makes them what they are to be. ``deployment``: of ``tidy``."""
    each = "prefect.resource.id"
    every: dict[str, Any] = {
        "match": {each: "prefect.flow-run.*"},
        "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        "for_each": {each},
    }
    crashed = EventTrigger(expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, **every)
    silent = EventTrigger(
        after=ALIVE, expect={"prefect.flow-run.*"}, posture=Posture.Proactive, within=timedelta(seconds=SILENT), **every
    )
    with get_client(sync_client=True) as client:
        for name, trigger in (("crashed", crashed), ("silent", silent)):
            wanted = AutomationCore(
                name=f"remint: {name}",
                description="Has a worker look after runs whose process is gone. Made by remint deploy.",
                trigger=trigger,
                actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=None, job_variables=None)],
            )
            found = client.read_automations_by_name(wanted.name)
            if found:
                client.update_automation(found[0].id, wanted)
            else:
                client.create_automation(wanted)
