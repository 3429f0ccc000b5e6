"""Schedules into Prefect: one deployment for each pipeline that has a ``schedule:``, run by a worker of the pool "remint"."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any, cast

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron, Interval, RRule, Schedule

from remint.config import Params, ScheduleSettings
from remint.home import Home

POOL = "remint"


def deploy(home: Home, params: Params, branch: str) -> list[dict[str, Any]]:
    """Makes Prefect's deployments those of params.yaml: added, changed and removed ones alike.

    A scheduled job builds the head of ``branch``. The calls are idempotent.
    """
    from flows.retrain import retrain

    _pool()
    deployed = []
    for name, pipeline in params.pipelines.items():
        if pipeline.schedule is None:
            _remove(name)
            continue
        remote = cast("Flow[..., Any]", retrain.from_source(source=str(home.repository), entrypoint="flows/retrain.py:retrain"))
        with redirect_stdout(io.StringIO()):  # Prefect prints a table of its own, which --json must not carry
            identity = remote.deploy(
                name=name,
                work_pool_name=POOL,
                schedule=_schedule(pipeline.schedule),
                parameters={"pipeline": name, "branch": branch, "reason": "scheduled"},
                job_variables={"env": _environment(home), "working_dir": str(home.repository)},
                concurrency_limit=1,  # a run that is still going when the next is due: one after the other
                description=f"Retrains {name} from the head of {branch}.",
                print_next_steps=False,
                ignore_warnings=True,
            )
        deployed.append(
            {
                "pipeline": name,
                "deployment": f"retrain/{name}",
                "id": str(identity),
                "schedule": pipeline.schedule.model_dump(exclude_none=True),
                "branch": branch,
            }
        )
    return deployed


def _environment(home: Home) -> dict[str, str]:
    """What a scheduled run needs to find the same stores as this command."""
    own = {key: os.environ[key] for key in ("MLFLOW_TRACKING_URI", "REMINT_LEDGER") if key in os.environ}
    return {"REMINT_HOME": str(home.path), "MLFLOW_DISABLE_TELEMETRY": "true", **own}


def _pool() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return


def _remove(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.delete_deployment(client.read_deployment_by_name(f"retrain/{name}").id)
        except ObjectNotFound:
            return


def _schedule(settings: ScheduleSettings) -> Schedule:
    if settings.cron is not None:
        return Cron(settings.cron, timezone=settings.timezone)
    if settings.interval is not None:
        return Interval(timedelta(seconds=settings.interval), timezone=settings.timezone)
    return RRule(cast("str", settings.rrule), timezone=settings.timezone)
