"""Events of a step on their way to the retraining that waits for it: lines in the log of the step's flow run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.sorting import LogSort
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run

from flows.server import run_log

run_log.install()

EVENT = "event "  # begins the line of an event
SHOWN = 2.0  # seconds between two events of progress
LATE = timedelta(seconds=30)  # by which a line may come after later ones
PAGE = 200  # lines per request, Prefect's limit
FLUSH = 10  # seconds

Report = Callable[[dict[str, Any]], None]


def reporter() -> Report:
    """Return a receiver of events that writes them to this run's log, each with its place: process of the run, and number."""
    logger, number, shown = get_run_logger(), 0, 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal number, shown
        if event["event"] == "progress":
            if time.monotonic() - shown < SHOWN:
                return
            shown = time.monotonic()
        number += 1
        logger.info("%s%s", EVENT, json.dumps({**event, "place": [flow_run.run_count, number]}))

    return report


def notice(text: str) -> dict[str, Any]:
    """Return an event that is a line for a person."""
    return {"event": "notice", "text": text}


def flush() -> None:
    """Send the lines that were not sent yet. The run ends after that, so a reader that sees the end sees all lines."""
    APILogWorker.drain_all(timeout=FLUSH)


@dataclass
class RunLog:
    """Events in the log of one flow run; each is read once."""

    run: UUID
    place: tuple[int, int] = (0, 0)  # of the last event
    since: datetime | None = None  # of the last line

    def new_events(self, client: SyncPrefectClient) -> list[dict[str, Any]]:
        """Return the events since the last call, in their order."""
        after = LogFilterTimestamp.model_validate({"after_": self.since - LATE}) if self.since else None
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run]), timestamp=after)
        found: dict[tuple[int, int], dict[str, Any]] = {}
        offset = 0
        while lines := client.read_logs(wanted, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC):
            offset += len(lines)
            for line in lines:
                self.since = max(self.since or line.timestamp, line.timestamp)
                if line.message.startswith(EVENT):
                    event = json.loads(line.message.removeprefix(EVENT))
                    run_count, number = event.pop("place")
                    found[run_count, number] = event
        new = sorted(place for place in found if place > self.place)
        self.place = new[-1] if new else self.place
        return [found[place] for place in new]
