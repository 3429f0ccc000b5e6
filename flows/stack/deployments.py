"""Deployments as they are in Prefect: those of remint, their settings, and leftovers of pipelines that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound

from flows.server import place
from remint.runtime.home import Home
from remint.settings import schedule
from remint.settings.params import Params
from remint.stores import git

POOL = place.POOL
ENGINE = "-m flows.server.engine"
NAMED_BY = {
    "retrain": "pipeline",
    "approve": "model",
    "shadow": "pipeline",
    "watch": "pipeline",
    "monitor": "pipeline",
}  # flow, and the parameter whose value is the deployment's name
PREFECTS_START = f"DTSTART:{schedule.PREFECTS_START:%Y%m%dT%H%M%S}\n"  # Prefect writes it before a rule without one
PAGE = 200  # deployments per request, Prefect's limit


def wanted(params: Params) -> list[str]:
    """Return the names (FLOW/PIPELINE) of the deployments that params.yaml asks for."""
    named = []
    for name, pipeline in params.pipelines.items():
        triggers = pipeline.triggers
        named += [f"retrain/{name}"] if pipeline.schedule or triggers.on else []
        named += [f"watch/{name}"] if triggers.data_changed else []
        named += [f"monitor/{name}"] if triggers.drift else []
        named += [f"shadow/{name}"] if pipeline.serving.shadow is not None else []
        named += [f"approve/{name}"] if pipeline.promotion.approval == "manual" else []
    return named


def existing(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Return the deployments of flows with the names of remint's, by FLOW/NAME. Other programs' may be among them."""
    found: dict[str, DeploymentResponse] = {}
    for flow in NAMED_BY:
        offset = 0
        while page := client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), limit=PAGE, offset=offset
        ):
            found |= {f"{flow}/{each.name}": each for each in page}
            offset += len(page)
    return found


def leftovers(home: Home, params: Params, found: Mapping[str, DeploymentResponse]) -> list[str]:
    """Return the names of the deployments that remint made for this clone and that params.yaml does not ask for."""
    return [name for name, each in found.items() if name not in wanted(params) and _is_own(home, name, each)]


def remove(deployment: UUID) -> None:
    """Delete a deployment and its schedule. Do nothing if it is gone."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(deployment)


def settings(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return what a deployment starts, and when: the values that ``deploy`` compares."""
    return {
        **(_schedule(deployment.schedules[0].schedule) if deployment.schedules else {}),
        **({"branch": deployment.parameters["branch"]} if "branch" in deployment.parameters else {}),
        "pool": deployment.work_pool_name,
        **places(deployment.job_variables or {}),
    }


def places(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the places in the job variables of a deployment, and its command; None for those that it leaves to the worker."""
    environment = variables.get("env") or {}
    return {
        "folder": variables.get("working_dir"),
        "repository": environment.get(place.REPOSITORY),
        "clones": environment.get(place.BRANCH),
        "home": environment.get("REMINT_HOME"),
        "command": variables.get("command"),
    }


def is_paused(deployment: DeploymentResponse) -> bool:
    """Return whether a person paused the deployment, or its schedule."""
    return bool(deployment.paused) or not all(each.active for each in deployment.schedules)


def _is_own(home: Home, name: str, deployment: DeploymentResponse) -> bool:
    flow, _, pipeline = name.partition("/")
    found = settings(deployment)
    here = found["pool"] == POOL and found["folder"] == str(home.repository)
    return (
        (here or is_pulled(home, deployment))
        and str(found["command"]).endswith(ENGINE)
        and deployment.parameters.get(NAMED_BY[flow]) == pipeline
    )


def is_pulled(home: Home, deployment: DeploymentResponse) -> bool:
    """Return whether the runs of a deployment clone the origin of this home's clone."""
    address = settings(deployment)["repository"]
    return address is not None and address == git.address(home.repository)


def _schedule(given: Any) -> dict[str, Any]:
    zone = {"timezone": given.timezone or "UTC"}
    if isinstance(given, IntervalSchedule):
        return {"interval": int(given.interval.total_seconds()), **zone}
    if isinstance(given, CronSchedule):
        return {"cron": given.cron, **zone}
    return {"rrule": given.rrule.removeprefix(PREFECTS_START), **zone}
