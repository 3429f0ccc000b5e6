"""Deployments in Prefect, run by a worker of the pool "remint", or of the pool that ``resources.default`` of a pipeline names.

retrain/NAME    for each pipeline with a ``schedule:`` or ``triggers:``
watch/NAME      for each pipeline with ``triggers.data_changed``: starts a retraining if the sources changed (flows/watch.py)
monitor/NAME    for each pipeline with ``triggers.drift``: judges the champion on today's data, and retrains if they drifted
shadow/NAME     for each pipeline with ``serving.shadow``: judges the versions that await it, every 15 minutes (flows/shadow.py)
approve/NAME    for each pipeline with ``approval: manual``: the form in which a person answers (flows/approval.py)
tidy/remint     cleans up runs whose process is gone; Prefect's automations start it (flows/stack/tidy.py)
step/POOL       one step of a retraining, on each pool that ``resources`` names (flows/pool_step.py); remint worker makes it too

On the pool "remint" a deployment names the clone, the home and the Python of this host. On another pool it names the address of
the repository, and no place of any host: the run has those of its worker.

A lease (stores/ledger/leases.py), and not a concurrency limit of the deployment, keeps a pipeline from being retrained twice
at the same time. Prefect's limits depend on wall clocks, and Prefect kills a run that cannot renew its slot: a clock that
jumps, or a server that is away at the wrong moment, would end a healthy training.
"""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectAlreadyExists
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron, Interval, RRule, Schedule

from flows.server import place, server
from flows.stack import deployments, notify, pace, pools
from flows.stack.deployments import ENGINE, POOL
from remint.promotion.spread import announcement, missing_seeds
from remint.runtime.home import Home
from remint.settings.params import Params
from remint.settings.schedule import ScheduleSettings

SHADOW = ScheduleSettings(interval=900)
OF_A_BRANCH = ("retrain", "watch", "monitor")  # flows that take the settings at the head of the branch


@dataclass(frozen=True)
class Change:
    """One deployment, as it is in Prefect and as params.yaml has it."""

    pipeline: str
    deployment: str  # FLOW/PIPELINE
    action: Literal["new", "changed", "unchanged", "removed"]
    id: str | None = None  # None: it is new
    schedule: dict[str, Any] | None = None
    branch: str | None = None
    pool: str = POOL
    variables: dict[str, Any] = field(default_factory=dict)  # job variables of the pool
    repository: str | None = None  # address that a run clones; None: it uses the clone on this host
    clones: str | None = None  # the branch of it
    changes: dict[str, list[Any]] = field(default_factory=dict)  # by key: the old and the new value
    paused: bool = False  # by a person, in Prefect
    warning: str | None = None


def plan(home: Home, params: Params, branch: str) -> list[Change]:
    """Return the changes that ``deploy`` would make, and what stays. Scheduled jobs build the head of ``branch``."""
    with get_client(sync_client=True) as client:
        found, longest = deployments.existing(client), pace.longest_runs(client)
    pools.check(params)
    planned = []
    for name in deployments.wanted(params):
        flow, _, pipeline = name.partition("/")
        settings = _schedule_settings(params, name)
        schedule = settings.model_dump(exclude_none=True) if settings else None
        change = Change(pipeline, name, "new", schedule=schedule, branch=branch if flow in OF_A_BRANCH else None)
        pool = params.pipelines[pipeline].resources.default
        if pool is not None:
            address = pools.address_of(home, pipeline)
            change = replace(change, pool=pool.pool, variables=pool.variables, repository=address, clones=branch)
        if settings and flow == "retrain":
            seeds = missing_seeds(home, pipeline, params.pipelines[pipeline])
            warnings = [
                pace.warning(settings, longest.get(pipeline)),
                None if seeds is None else announcement(pipeline, len(seeds)),
            ]
            change = replace(change, warning="; ".join(filter(None, warnings)) or None)
        if before := found.get(name):
            changes = _changes(deployments.settings(before), _settings(home, change))
            action: Literal["changed", "unchanged"] = "changed" if changes else "unchanged"
            paused = deployments.is_paused(before)
            change = replace(change, action=action, id=str(before.id), changes=changes, paused=paused)
        planned.append(change)
    gone = deployments.leftovers(home, params, found)
    return planned + [Change(name.partition("/")[2], name, "removed", str(found[name].id)) for name in gone]


def deploy(home: Home, params: Params, planned: list[Change]) -> list[Change]:
    """Carry out what ``plan`` returned, and return it with the ids of new deployments. The calls are idempotent.

    A deployment or schedule that a person paused stays paused. An interval keeps the time from which it counts.
    """
    from flows.stack import tidy

    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        found = deployments.existing(client)
    for pool in {pool.pool for each in params.pipelines.values() for pool in each.resources.pools.values()}:
        pools.install_steps(pool)
    about = "Ends runs whose process is gone, and lets scheduled ones resume. Automations start it."
    if any(change.pool == POOL for change in planned) or not planned:  # elsewhere the workers look themselves
        tidy.install(UUID(_deploy(home, tidy.tidy, "remint", description=about)))
    done = [_carry_out(home, params, change, found.get(change.deployment)) for change in planned]
    notify.install(params.notify)
    return done


def _carry_out(home: Home, params: Params, change: Change, before: DeploymentResponse | None) -> Change:
    if change.action == "removed":
        deployments.remove(UUID(change.id))
        return change
    settings = _schedule_settings(params, change.deployment)
    more: dict[str, Any] = {"paused": before.paused} if before else {}
    if settings is not None:
        more["schedule"] = _schedule(settings, before)
    elif before and before.schedules:
        more["schedules"] = []  # the pipeline has triggers only, since this deployment
    flow, parameters, description = _flow_of(change)
    more |= {"parameters": parameters, "description": description}
    if change.repository is None:
        return replace(change, id=_deploy(home, flow, change.pipeline, **more))
    return replace(change, id=pools.deploy_to(flow, change.pipeline, change.pool, change.variables, _clone_of(change), **more))


def _clone_of(change: Change) -> dict[str, str]:
    """Return the environment by which a run makes its clone."""
    return {place.REPOSITORY: change.repository or "", place.BRANCH: change.clones or ""}


def _flow_of(change: Change) -> tuple[Flow[..., Any], dict[str, Any], str]:
    """Return the flow of a deployment, its parameters and its description."""
    from flows.approval import approve
    from flows.retrain import retrain
    from flows.shadow import judge_shadow
    from flows.watch import monitor, watch

    name = change.pipeline
    parameters: dict[str, Any] = {"pipeline": name, **({"branch": change.branch} if change.branch else {})}
    match change.deployment.partition("/")[0]:
        case "approve":
            return approve, {"model": name}, f"Asks a person whether to promote a version of {name}. Retrainings start it."
        case "shadow":
            return judge_shadow, parameters, f"Judges the versions of {name} that await shadow."
        case "watch":
            return watch, parameters, f"Starts a retraining of {name} if its sources changed."
        case "monitor":
            return monitor, parameters, f"Judges the champion of {name} on today's data, and retrains it if they drifted."
        case _:
            return retrain, {**parameters, "reason": "scheduled"}, f"Retrains {name} from the head of {change.branch}."


def _schedule_settings(params: Params, deployment: str) -> ScheduleSettings | None:
    """Return the schedule that params.yaml asks for; None: no schedule, or the deployment is to be removed."""
    flow, _, pipeline = deployment.partition("/")
    if pipeline not in params.pipelines or flow == "approve":
        return None
    triggers = params.pipelines[pipeline].triggers
    if flow in ("watch", "monitor"):
        trigger = triggers.data_changed if flow == "watch" else triggers.drift
        return ScheduleSettings(interval=trigger.seconds) if trigger else None
    return SHADOW if flow == "shadow" else params.pipelines[pipeline].schedule


def describe(change: Change) -> str:
    """Describe a change in one line."""
    if change.action == "removed":
        return f"- {change.deployment}: removed, since params.yaml does not ask for it"
    flow, every = change.deployment.partition("/")[0], _every((change.schedule or {}).get("interval", 0))
    head = f"from the head of {change.branch}"
    about = {
        "approve": "the form for versions that await approval",
        "shadow": f"judges versions that await shadow, every {every}",
        "watch": f"retrains if the sources changed, every {every}",
        "monitor": f"judges the champion on today's data, and retrains if they drifted, every {every}",
        "retrain": f"{', '.join(f'{key} {value}' for key, value in (change.schedule or {'by': 'triggers'}).items())}, {head}",
    }[flow]
    sign = {"new": "+ ", "changed": "~ ", "unchanged": "  "}[change.action]
    changes = "; ".join(f"{key} {old} -> {new}" for key, (old, new) in change.changes.items())
    notes = [f"pool {change.pool}"] if change.pool != POOL else []
    notes += [f"changed: {changes}"] if changes else []
    notes += ["paused in Prefect: it stays paused"] if change.paused else []
    notes += [f"warning: {change.warning}"] if change.warning else []
    return f"{sign}{change.deployment}: {about}" + (f" ({'; '.join(notes)})" if notes else "")


def _every(seconds: int) -> str:
    """Return a time in its largest whole unit: 15 minutes."""
    unit, size = next(
        (unit, size) for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)) if seconds % size == 0
    )
    return f"{seconds // size} {unit}{'s' * (seconds != size)}"


def _settings(home: Home, change: Change) -> dict[str, Any]:
    """Return the values of ``deployments.settings`` that a deployment will have."""
    when = {**(change.schedule or {}), **({"branch": change.branch} if change.branch else {}), "pool": change.pool}
    if change.repository is not None:
        variables = pools.job_variables(change.variables, _clone_of(change))
        return {**when, **deployments.places(variables)}
    return {**when, **deployments.places(_variables_here(home))}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)}


def _variables_here(home: Home) -> dict[str, Any]:
    """Return the job variables of runs that use this clone.

    No address of a store: its password would be stored in Prefect's database. A run has its worker's environment.
    """
    return {
        "command": f"{shlex.quote(sys.executable)} {ENGINE}",
        "env": {"REMINT_HOME": str(home.path), **server.STEADY},
        "working_dir": str(home.repository),
    }


def _deploy(home: Home, flow: Flow[..., Any], name: str, **settings: Any) -> str:
    """Make or change one deployment for this clone. Return its id."""
    entrypoint = f"{flow.fn.__module__.replace('.', '/')}.py:{flow.fn.__name__}"
    remote = cast("Flow[..., Any]", flow.from_source(source=LocalStorage(str(home.repository)), entrypoint=entrypoint))
    with redirect_stdout(io.StringIO()):  # Prefect prints a table, which would break the output of --json
        identity = remote.deploy(
            name=name,
            work_pool_name=POOL,
            job_variables=_variables_here(home),
            print_next_steps=False,
            ignore_warnings=True,
            **settings,
        )
    return str(identity)


def _schedule(settings: ScheduleSettings, before: DeploymentResponse | None) -> Schedule:
    """Return Prefect's schedule, with the state and the start of the one before: Prefect replaces that at each deployment."""
    former = before.schedules[0] if before and before.schedules else None
    active = former.active if former else True
    if settings.cron is not None:
        return Cron(settings.cron, timezone=settings.timezone, active=active)
    if settings.interval is not None:
        anchor = former.schedule.anchor_date if former and isinstance(former.schedule, IntervalSchedule) else None
        return Interval(timedelta(seconds=settings.interval), anchor_date=anchor, timezone=settings.timezone, active=active)
    return RRule(cast("str", settings.rrule), timezone=settings.timezone, active=active)
