"""Deployments in Prefect, run by a worker of the pool "remint".

retrain/NAME    for each pipeline with a ``schedule:``
approve/NAME    for each pipeline with ``approval: manual``: the form in which a person answers (flows/approval.py)
tidy/remint     cleans up runs whose process is gone; Prefect's automations start it (flows/stack/tidy.py)

A lease (stores/ledger/leases.py), and not a concurrency limit of the deployment, keeps a pipeline from being retrained twice
at the same time. Prefect's limits depend on wall clocks, and Prefect kills a run that cannot renew its slot: a clock that
jumps, or a server that is away at the wrong moment, would end a healthy training.
"""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron, Interval, RRule, Schedule

from flows.server import server
from remint.runtime.home import Home
from remint.settings.params import Params
from remint.settings.schedule import ScheduleSettings

POOL = "remint"
NEVER = "no time fits this schedule, so it never starts a run"


def deploy(home: Home, params: Params, branch: str) -> list[dict[str, Any]]:
    """Add, change and remove Prefect's deployments so that they match params.yaml. Return an entry for each.

    A scheduled job builds the head of ``branch``. The calls are idempotent.
    """
    from flows.approval import approve
    from flows.retrain import retrain
    from flows.stack import tidy

    _pool()
    about = "Ends runs whose process is gone, and lets scheduled ones resume. Automations start it."
    tidy.install(UUID(_deploy(home, tidy.tidy, "flows/stack/tidy.py:tidy", "remint", description=about)))
    deployed = []
    for name, pipeline in params.pipelines.items():
        if pipeline.schedule is None:
            _remove(f"retrain/{name}")
        else:
            identity = _deploy(
                home,
                retrain,
                "flows/retrain.py:retrain",
                name,
                schedule=_schedule(pipeline.schedule),
                parameters={"pipeline": name, "branch": branch, "reason": "scheduled"},
                description=f"Retrains {name} from the head of {branch}.",
            )
            schedule = pipeline.schedule.model_dump(exclude_none=True)
            warning = None if pipeline.schedule.can_fire() else NEVER
            deployed.append(_entry(name, f"retrain/{name}", identity, schedule=schedule, branch=branch, warning=warning))
        if pipeline.promotion.approval != "manual":
            _remove(f"approve/{name}")
        else:
            about = f"Asks a person whether to promote a version of {name}. Retrainings start it."
            form = _deploy(home, approve, "flows/approval.py:approve", name, parameters={"model": name}, description=about)
            deployed.append(_entry(name, f"approve/{name}", form))
    return deployed


def describe(entry: dict[str, Any]) -> str:
    """Describe an entry of ``deploy`` in one line."""
    if entry["schedule"] is None:
        return f"{entry['deployment']}: the form for versions that await approval"
    schedule = ", ".join(f"{key} {value}" for key, value in entry["schedule"].items())
    warning = f" (warning: {entry['warning']})" if entry["warning"] else ""
    return f"{entry['deployment']}: {schedule}, from the head of {entry['branch']}{warning}"


def _deploy(home: Home, flow: Flow[..., Any], entrypoint: str, name: str, **settings: Any) -> str:
    """Make or change one deployment. Return its id."""
    remote = cast("Flow[..., Any]", flow.from_source(source=LocalStorage(str(home.repository)), entrypoint=entrypoint))
    with redirect_stdout(io.StringIO()):  # Prefect prints a table, which would break the output of --json
        identity = remote.deploy(
            name=name,
            work_pool_name=POOL,
            # No address of a store: its password would be stored in Prefect's database. A run has its worker's environment.
            job_variables={
                "command": f"{shlex.quote(sys.executable)} -m flows.server.engine",
                "env": {"REMINT_HOME": str(home.path), **server.STEADY},
                "working_dir": str(home.repository),
            },
            print_next_steps=False,
            ignore_warnings=True,
            **settings,
        )
    return str(identity)


def _entry(
    pipeline: str, deployment: str, identity: str, *, schedule: Any = None, branch: str | None = None, warning: str | None = None
) -> dict[str, Any]:
    entry = {"pipeline": pipeline, "deployment": deployment, "id": identity}
    return {**entry, "schedule": schedule, "branch": branch, "warning": warning}


def _pool() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return


def _remove(deployment: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.delete_deployment(client.read_deployment_by_name(deployment).id)
        except ObjectNotFound:
            return


def _schedule(settings: ScheduleSettings) -> Schedule:
    if settings.cron is not None:
        return Cron(settings.cron, timezone=settings.timezone)
    if settings.interval is not None:
        return Interval(timedelta(seconds=settings.interval), timezone=settings.timezone)
    return RRule(cast("str", settings.rrule), timezone=settings.timezone)
