"""A served name: its present version, the requests that wait for it, and the one thread that answers them.

A switch is one assignment. The thread takes the version together with the requests, so a request ends on the version that
it began with, and no answer mixes two.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

from remint.errors import RunError
from remint.serving.app.answers import Answer, Request, answer
from remint.serving.app.limits import QueueFull, Room
from remint.serving.app.shadow import Copy, Shadow
from remint.serving.model import ServedModel

DRAIN_SECONDS = 30  # for requests in flight, after a signal


@dataclass(frozen=True)
class Version:
    """A version that is served."""

    served: ServedModel
    number: int
    since: str  # ISO 8601, UTC
    decision: str  # the ledger's row in a sentence

    @classmethod
    def from_now(cls, served: ServedModel, number: int, decision: str = "") -> Version:
        """Return a version that is served from now on."""
        return cls(served, number, datetime.now(UTC).isoformat(timespec="seconds"), decision)

    @property
    def about(self) -> dict[str, str | int]:
        return {"model": self.served.ref.partition("/")[0], "version": self.number, "weights_sha256": self.served.weights_sha256}


@dataclass
class Waiting:
    request: Request
    prepared_for: Version
    prepare: Callable[[Version], Request]
    result: Future[tuple[Version, Answer]] = field(default_factory=Future)


class Slot:
    """One served name."""

    def __init__(self, ref: str, most_waiting: int, room: Room | None = None) -> None:
        """Begin without a version. ``ref``: NAME, NAME@challenger or NAME/7. ``room``: shared with other names."""
        self.ref, self.most_waiting, self.room = ref, most_waiting, room or Room(sys.maxsize)
        self.name = re.split("[@/]", ref)[0]
        self.follows_champion = ref in (self.name, f"{self.name}@champion")
        self.version: Version | None = None
        self.shadow: Shadow | None = None
        self.seconds_busy = 0.0
        self._busy = False
        self._waiting: list[Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"serve {ref}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return sum(not each.result.cancelled() for each in self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is answered and nothing waits."""
        return not self._busy and not self._waiting

    def ask(self, prepare: Callable[[Version], Request]) -> Future[tuple[Version, Answer]]:
        """Queue a request, prepared for the present version. Raises QueueFull, and the errors of ``prepare``."""
        version = self.version
        if version is None:
            raise RunError(f"{self.name} is not loaded yet")
        waiting = Waiting(prepare(version), version, prepare)
        count = len(waiting.request)
        with self._changed:
            if self._closed:
                raise RunError("the server stops")
            self._waiting = [each for each in self._waiting if not each.result.cancelled()]  # their callers gave up
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull(f"{self.most_waiting} requests wait already: ask again later")
            self.room.take(count)
            waiting.result.add_done_callback(lambda _: self.room.give(count))
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.result

    def close(self) -> None:
        """Answer the requests that wait, and end; after DRAIN_SECONDS without them."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(DRAIN_SECONDS)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                first = self._waiting[0]
                batch = [each for each in self._waiting if _alike(each, first)]
                self._waiting = [each for each in self._waiting if not _alike(each, first)]
                self._busy = True
            began = time.monotonic()
            _answer([each for each in batch if each.result.set_running_or_notify_cancel()])
            self.seconds_busy += time.monotonic() - began
            if (shadow := self.shadow) is not None:  # after the answers are out
                for each in batch:
                    if not each.result.cancelled() and each.result.exception() is None:
                        shadow.offer(Copy(each.prepared_for, each.request, each.prepare))
            self._busy = False
            del first, batch  # they hold their version and examples, and the next request may come in a year


def _answer(batch: list[Waiting]) -> None:
    """Answer requests together. If that fails each is answered alone, so that only those that fail get an error."""
    if not batch:
        return
    try:
        answers = answer(batch[0].prepared_for.served, [each.request for each in batch])
    except BaseException as error:  # noqa: BLE001  the thread goes on; the caller gets the error
        if len(batch) == 1:
            batch[0].result.set_exception(error)
            return
    else:
        for each, found in zip(batch, answers, strict=True):
            each.result.set_result((each.prepared_for, found))
        return
    for each in batch:
        _answer([each])


def _alike(a: Waiting, b: Waiting) -> bool:
    """Return whether two requests are answered together."""
    return a.prepared_for is b.prepared_for and a.request.kind == b.request.kind
