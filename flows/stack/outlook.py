"""What Prefect knows of each pipeline, for the console: when it starts next, and whether its newest run failed.

A thread asks every half minute, so that a page never waits for Prefect. Where no server answers, the next start is the one in
params.yaml, which happens only if a server and a worker run by then.
"""

from __future__ import annotations

import json
import os
import threading
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any

from flows.server import client, server
from remint.runtime.home import Home
from remint.serving.console.source import Outlook
from remint.settings.params import Params
from remint.settings.schedule import PREFECTS_START, ScheduleSettings

EVERY = 30.0  # seconds
PAGE = 200  # entries of one answer, Prefect's limit
STARTS = 40  # next starts of a schedule between which the longest time is looked for
RETRAIN = {"flows": {"name": {"any_": ["retrain"]}}, "limit": PAGE}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
AWAY = "if Prefect and a worker run then"


class Outlooks:
    """Outlook of each pipeline, at most half a minute old. A daemon thread keeps it so."""

    def __init__(self, home: Home, params: Callable[[], Params]) -> None:
        self.home, self.params = home, params
        self._found: Mapping[str, Outlook] = {}
        self._looked = threading.Event()
        threading.Thread(target=self._follow, name="outlook", daemon=True).start()

    def __call__(self) -> Mapping[str, Outlook]:
        self._looked.wait(client.PATIENCE)
        return self._found

    def _follow(self) -> None:
        while True:
            self._found = outlooks(self.home, self.params())
            self._looked.set()
            threading.Event().wait(EVERY)


def outlooks(home: Home, params: Params) -> dict[str, Outlook]:
    """Return the outlook of each pipeline, from Prefect's API, or else from params.yaml."""
    address = os.environ.get("PREFECT_API_URL") or server.recorded_addresses(home).get("prefect")
    planned = {name: pipeline.schedule for name, pipeline in params.pipelines.items()}
    try:
        if not address:
            raise client.NoAnswer("no server is known")
        deployed = {each["name"]: each for each in ask(address, "deployments/filter", {})}
        scheduled = ask(address, "flow_runs/filter", {"flow_runs": in_state("SCHEDULED"), "sort": "EXPECTED_START_TIME_ASC"})
        newest = ask(address, "flow_runs/filter", {"flow_runs": in_state(*ENDED), "sort": "END_TIME_DESC"})
    except client.NoAnswer:
        return {name: Outlook(_next(schedule), AWAY) if schedule else Outlook() for name, schedule in planned.items()}
    starts: dict[str, datetime] = {}
    for run in scheduled:
        starts.setdefault(pipeline_of(run), datetime.fromisoformat(run["expected_start_time"]))
    last: dict[str, Any] = {}
    for run in newest:
        last.setdefault(pipeline_of(run), run)
    found = {}
    for name, schedule in planned.items():
        start, note = starts.get(name), ""
        if start is None and schedule is not None:
            note = obstacle(deployed.get(name))
            start = None if note else _next(schedule)  # Prefect plans a hundred days ahead
        found[name] = Outlook(start, note, _failure(last.get(name)))
    return found


def obstacle(deployed: Mapping[str, Any] | None) -> str:
    """Return why a schedule does not start runs; "" if it does."""
    if deployed is None:
        return "not deployed: run remint deploy"
    if deployed["paused"] or not all(each["active"] for each in deployed["schedules"]):
        return "paused in Prefect"
    return ""


def _failure(run: Mapping[str, Any] | None) -> str:
    if run is None or run["state_type"] not in ("FAILED", "CRASHED"):
        return ""
    lines = str((run.get("state") or {}).get("message") or run["state_type"].lower()).splitlines()
    return f"the run {run['name']}, which ended {run['end_time'][:16].replace('T', ' ')} UTC: {lines[0] if lines else ''}"


def in_state(*names: str) -> dict[str, Any]:
    return {"state": {"type": {"any_": list(names)}}}


def pipeline_of(run: Mapping[str, Any]) -> str:
    return str(run["parameters"].get("pipeline"))


def ask(address: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return Prefect's answer about runs of the flow retrain. Raises NoAnswer if it has none."""
    return list(post(address, path, {**RETRAIN, **body}))


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    """Return Prefect's answer to one request. Raises NoAnswer if it has none within client.PATIENCE."""
    headers = {"content-type": "application/json", **client.credentials()}
    answer = client.ask(client.prefect(address), path, headers, json.dumps(body).encode())
    if answer.status_code != 200:
        raise client.NoAnswer(f"status {answer.status_code}")
    return answer.json()


def longest_gap(schedule: ScheduleSettings) -> float | None:
    """Return the longest time in seconds between two of the next starts; None if there is one at most."""
    if schedule.interval is not None:
        return float(schedule.interval)
    if not schedule.can_fire():
        return None
    zone = zoneinfo.ZoneInfo(schedule.timezone)
    now = datetime.now(zone)
    times: list[datetime] = []
    if schedule.cron is not None:
        from prefect._vendor.croniter import croniter  # type: ignore[attr-defined]

        cron = croniter(schedule.cron, now)  # type: ignore[no-untyped-call]
        times = [cron.get_next(datetime) for _ in range(STARTS)]  # type: ignore[no-untyped-call]
    elif schedule.rrule is not None:
        from dateutil.rrule import rrulestr

        rule = rrulestr(schedule.rrule, dtstart=PREFECTS_START, ignoretz=True)
        times = list(rule.xafter(now.replace(tzinfo=None), count=STARTS))
    return max(((later - sooner).total_seconds() for sooner, later in pairwise(times)), default=None)


def _next(schedule: ScheduleSettings) -> datetime | None:
    """Return the next time of a schedule; None if it has none, or depends on when it was deployed."""
    zone = zoneinfo.ZoneInfo(schedule.timezone)
    now = datetime.now(zone)
    if schedule.cron is not None and schedule.can_fire():
        # A second to import, so only where no server answers.
        from prefect._vendor.croniter import croniter  # type: ignore[attr-defined]

        found: datetime = croniter(schedule.cron, now).get_next(datetime)  # type: ignore[no-untyped-call]
        return found
    if schedule.rrule is not None and schedule.can_fire():
        from dateutil.rrule import rrulestr

        local = rrulestr(schedule.rrule, dtstart=PREFECTS_START, ignoretz=True).after(now.replace(tzinfo=None))
        return local.replace(tzinfo=zone) if local else None
    return None
