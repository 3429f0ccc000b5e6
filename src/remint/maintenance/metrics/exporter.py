"""Exporter: one thread reads each part of an installation again and again, and a scrape gets what was read last.

So a scrape asks no server and waits for none: it takes milliseconds, also while a part hangs. Only in the first seconds it
waits, FIRST at most, until each part was read once. A part that fails, or was not read for STALE seconds, has
``remint_up{part="mlflow"} 0`` and no other metrics; the other parts go on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from remint.maintenance.metrics.catalogue import gauge
from remint.redaction import redacted
from remint.runtime import json_log

EVERY = 30.0  # seconds between two reads of a part
STALE = 120.0  # seconds after which a part that was not read counts as away
FIRST = 5.0  # seconds from the start in which a scrape waits for the first reads

Read = Callable[[], Iterable[Metric]]


@dataclass(frozen=True)
class Snapshot:
    """What one read of a part gave. ``at``: on the monotonic clock."""

    families: Sequence[Metric]
    at: float
    seconds: float


class Part:
    """One part, read by a daemon thread every ``every`` seconds until ``ended`` is set."""

    def __init__(self, name: str, read: Read, every: float = EVERY) -> None:
        self.name, self.read, self.every = name, read, every
        self.looked, self.ended = threading.Event(), threading.Event()
        self._snapshot: Snapshot | None = None
        threading.Thread(target=self._follow, name=f"metrics of {name}", daemon=True).start()

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest one; None if the part is away."""
        found = self._snapshot
        return found if found is not None and time.monotonic() - found.at < STALE else None

    def _follow(self) -> None:
        told = ""
        while not self.ended.is_set():
            began = time.monotonic()
            try:
                families = list(self.read())
                self._snapshot, told = Snapshot(families, time.monotonic(), time.monotonic() - began), ""
            except Exception as error:  # noqa: BLE001  no fault may end the thread: it would read no longer, in silence
                self._snapshot = None
                line = redacted(f"metrics of {self.name}: {type(error).__name__}: {error}".splitlines()[0])
                if line != told:
                    json_log.say(line, sys.stderr)
                told = line
            self.looked.set()
            self.ended.wait(self.every)


class Exporter(Collector):
    """Prometheus collector of all parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self._first = parts, time.monotonic() + FIRST

    def close(self) -> None:
        """Let the threads end, each after the read that it is in."""
        for part in self.parts:
            part.ended.set()

    def collect(self) -> Iterator[Metric]:
        up, seconds = gauge("remint_up"), gauge("remint_read_seconds")
        found: list[Metric] = []
        for part in self.parts:
            part.looked.wait(max(0.0, self._first - time.monotonic()))
            snapshot = part.snapshot
            up.add_metric([part.name], float(snapshot is not None))
            if snapshot is not None:
                seconds.add_metric([part.name], snapshot.seconds)
                found += snapshot.families
        yield from (up, seconds, *found)
