"""Cleanup of runs whose process is gone, started by Prefect's automations. `remint deploy` installs it.

Two automations of the server start a run of tidy/remint:

    crashed    a worker reported that the process of a run has ended
    silent     a run sent no heartbeat and no state for SILENT seconds

That run then asks the kernel which jobs are alive (remint.runtime.jobs); the server cannot know that. So a false alarm, after
the server was away or a clock jumped, does not affect healthy runs.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.server import place, server
from flows.server.reconcile import FLOWS, sweep

SILENT = 5 * server.HEARTBEAT  # seconds; a server that is away for a minute misses at most three heartbeats
ALIVE = {f"prefect.flow-run.{word}" for word in ("heartbeat", "Pending", "Submitting", "Running", "Retrying", "Cancelling")}


@flow(name="tidy", persist_result=False)
def tidy() -> list[str]:
    """End the runs that dead processes of this home left open, and let deployed ones resume. Return a line for each."""
    home = place.home_of_flow()
    return sweep(home, own_server=os.environ.get("PREFECT_API_URL") == (server.stack(home) or {}).get("prefect"))


def install(deployment: UUID) -> None:
    """Make or update the two automations. ``deployment``: the id of the deployment of ``tidy``."""
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
                description="Starts the cleanup of runs whose process is gone. Made by remint deploy.",
                trigger=trigger,
                actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=None, job_variables=None)],
            )
            found = client.read_automations_by_name(wanted.name)
            if found:
                client.update_automation(found[0].id, wanted)
            else:
                client.create_automation(wanted)
