"""Warnings about a schedule that never fires, or that fires faster than a run lasts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.server.schemas.schedules import CronSchedule

from remint.settings.schedule import PREFECTS_START, ScheduleSettings

NEVER = "no time fits this schedule, so it never starts a run"
SHORTEST_RUN = timedelta(minutes=1)  # a run that trains takes longer
TIMES = 100  # next times of a schedule that are looked at
RUNS = 200  # newest runs of all pipelines that are looked at: Prefect's largest page


def warning(schedule: ScheduleSettings, longest_run: timedelta | None) -> str | None:
    """Return why a schedule will not do what it says, or None. ``longest_run``: of the pipeline; None: none is known."""
    if not schedule.can_fire():
        return NEVER
    if schedule.other_zone:
        return f"Prefect ignores the zone {schedule.other_zone} in rrule and reads the times in timezone: {schedule.timezone}"
    gap = _shortest_gap(schedule)
    if gap is None or gap >= max(SHORTEST_RUN, longest_run or SHORTEST_RUN):
        return None
    lasts = f"has lasted {_rounded(longest_run)}" if longest_run and longest_run > gap else f"lasts {SHORTEST_RUN} or more"
    return f"it fires again after {_rounded(gap)}, and a run {lasts}: a run that is due meanwhile is skipped"


def longest_runs(client: SyncPrefectClient) -> dict[str, timedelta]:
    """Return the longest time that a completed retraining of each pipeline took, among the newest runs."""
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED]))),
        sort=FlowRunSort.END_TIME_DESC,
        limit=RUNS,
    )
    longest: dict[str, timedelta] = {}
    for run in runs:
        name = str(run.parameters.get("pipeline"))
        longest[name] = max(run.total_run_time, longest.get(name, timedelta()))
    return longest


def _shortest_gap(schedule: ScheduleSettings) -> timedelta | None:
    """Return the shortest time between two of the next times of a schedule; None if it fires once more at most."""
    if schedule.interval is not None:
        return timedelta(seconds=schedule.interval)
    times = _times_of_cron(schedule) if schedule.cron is not None else _times_of_rrule(schedule.rrule or "")
    return min((later - sooner for sooner, later in pairwise(times)), default=None)


def _times_of_cron(schedule: ScheduleSettings) -> list[Any]:
    return asyncio.run(CronSchedule(cron=schedule.cron or "", timezone=schedule.timezone).get_dates(n=TIMES))


def _times_of_rrule(text: str) -> list[Any]:
    from dateutil.rrule import rrule, rrulestr

    rule = rrulestr(text, dtstart=PREFECTS_START)
    if not isinstance(rule, rrule):  # several rules in one
        return []
    return list(islice(rule.replace(dtstart=datetime.now(UTC).replace(tzinfo=None), until=None, count=None), TIMES))


def _rounded(time: timedelta) -> timedelta:
    return timedelta(seconds=round(time.total_seconds()))
