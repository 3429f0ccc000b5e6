"""Shadow of a served name: a version that awaits shadow answers copies of requests, and its answers are only counted.

    request -> the champion answers the person -> by chance of the share: a copy waits -> both answer it, when nothing else waits

The copies wait in a short queue of their own. A copy that finds it full is dropped and counted, so a person's request neither
waits for the shadow nor fails with it. The champion answers each copy once more, alone and in turn with the version, so that
their seconds are comparable.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from remint.models.contract import HasElbo, HasLogProb
from remint.serving.app import canary
from remint.serving.app.answers import Request, answer
from remint.serving.model import ServedModel
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.shadow_counts import Pair, ShadowCounts

if TYPE_CHECKING:
    from remint.serving.app.slot import Version

QUEUE = 16  # copies that wait
LARGEST = 256  # examples, times their draws or steps, of a request that is copied: a person may wait for one copy to end
CLOSE_SECONDS = 5.0
PAUSE = 0.005  # seconds between two looks whether the slot is idle
SCORED = ("log_prob", "score", "encode", "reconstruct")  # methods whose request has whole examples

Record = Callable[[str, str, int, ShadowCounts], None]  # request, server, part, counts


@dataclass(frozen=True)
class Copy:
    """A request that the champion has answered."""

    champion: Version
    request: Request  # in the champion's form
    prepare: Callable[[Version], Request]


class Shadow:
    """One version that awaits shadow on this server."""

    def __init__(
        self, version: Version, request: str, champion: int, settings: ServingSettings, idle: Callable[[], bool]
    ) -> None:
        """Begin to count. ``request``: hash of the ledger's row; ``idle``: whether no person waits."""
        self.version, self.request, self.champion, self.settings, self.idle = version, request, champion, settings, idle
        self.server = uuid.uuid4().hex
        self.copies = self.dropped = 0  # of this server, since it began
        self._number = self._part = 0
        self._unsent: list[ShadowCounts] = []
        self._queue: deque[Copy] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._reset()
        self._thread = threading.Thread(target=self._work, name=f"shadow {version.served.ref}", daemon=True)
        self._thread.start()

    def offer(self, copy: Copy) -> None:
        """Queue a copy, if it is of the share and of the right champion. Takes microseconds."""
        self._number += 1
        if copy.champion.number != self.champion or _size(copy.request) > LARGEST:
            return
        if not is_copied(self.request, self.server, self._number, self.settings.shadow or 0.0):
            return
        with self._changed:
            if self._closed or self.copies + len(self._queue) >= self.settings.answers:
                return  # one server alone has enough
            if len(self._queue) >= QUEUE:
                self.dropped += 1
                self._dropped += 1
                return
            self._queue.append(replace(copy, prepare=lambda _: copy.request) if self._same_form(copy.champion) else copy)
            self._changed.notify()

    def _same_form(self, champion: Version) -> bool:
        """Return whether both take the same prepared request: the copy then need not hold a body of many bytes."""
        ours, theirs = self.version.served, champion.served
        return ours.spec == theirs.spec and ours.conditional == theirs.conditional

    def close(self) -> None:
        """End, after the copy that is answered now; after CLOSE_SECONDS without it, since a shadow may hang."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def flush(self, record: Record) -> None:
        """Hand over what was counted since the last call. If that fails, it is handed over at the next call."""
        with self._changed:
            if self._copies or self._dropped:
                self._unsent.append(self._counts())
                self._reset()
        while self._unsent:
            record(self.request, self.server, self._part, self._unsent[0])
            del self._unsent[0]
            self._part += 1

    def _reset(self) -> None:
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._copies = self._dropped = 0
        self._errors: Counter[str] = Counter()
        self._seconds: list[Pair] = []
        self._scores: list[Pair] = []

    def _counts(self) -> ShadowCounts:
        return ShadowCounts(
            host=socket.gethostname(),
            began=self._began,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            copies=self._copies,
            dropped=self._dropped,
            errors=dict(self._errors),
            seconds=tuple(self._seconds),
            scores=tuple(self._scores),
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
            while not self.idle() and not self._closed:
                time.sleep(PAUSE)
            with self._changed:
                if self._closed:
                    self._queue.clear()
                    return
                copy = self._queue.popleft()
            self._count(copy)
            del copy  # it holds a version and examples, and the next one may come in a year

    def _count(self, copy: Copy) -> None:
        """Answer one copy, and count how it went."""
        method, error, seconds, score = copy.request.method, "", None, None
        try:
            seconds = self._timed(copy)
            score = _scores(copy.champion.served, self.version.served, copy.request)
        except NotFinite:
            error = "values that are not finite"
        except Exception as fault:  # noqa: BLE001  whatever it is, the version failed where the champion answered
            error = type(fault).__name__
        with self._changed:
            self.copies += 1
            self._copies += 1
            if error:
                self._errors[f"{method}: {error}"] += 1
            elif seconds is not None:
                self._seconds.append(seconds)
            if score is not None:
                self._scores.append(score)

    def _timed(self, copy: Copy) -> Pair | None:
        """Return the seconds of both; None if the champion fails now. Raises what the version raises.

        The version answers twice: its first answer is slow after a pause, as the champion's would be.
        """
        request = copy.prepare(self.version)
        if not np.isfinite(canary.answered(self.version.served, request)).all():
            raise NotFinite
        try:
            champion = _seconds(copy.champion.served, copy.request)
        except Exception:  # noqa: BLE001  it answered the person; only its seconds are lost
            return None
        return champion, _seconds(self.version.served, request)


class NotFinite(Exception):
    """An answer has values that are not finite."""


def is_copied(request: str, server: str, number: int, share: float) -> bool:
    """Return whether a request is copied: a function of its number alone, evenly spread."""
    drawn = hashlib.blake2b(f"{request} {server} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn) < share * 2**64


def _size(request: Request) -> int:
    options = request.options
    return len(request) * int(options.get("draws") or options.get("steps") or 1)


def _seconds(served: ServedModel, request: Request) -> float:
    began = time.perf_counter()
    canary.answered(served, request)
    return time.perf_counter() - began


def _scores(champion: ServedModel, version: ServedModel, request: Request) -> Pair | None:
    """Return log p of the request's first example under both; None if it has none, or they have no common measure of it."""
    if request.method not in SCORED or request.x_NX is None or champion.spec != version.spec:
        return None
    if not all(isinstance(each.model, HasLogProb | HasElbo) for each in (champion, version)):
        return None
    y_N = None if request.y_N is None else request.y_N[:1]
    asked = Request("log_prob", request.x_NX[:1], y_N)
    found = [answer(each, [asked])[0] for each in (champion, version)]
    if found[0].about != found[1].about or not np.isfinite(found[0].values).all():
        return None
    if not np.isfinite(found[1].values).all():
        raise NotFinite
    return float(found[0].values[0]), float(found[1].values[0])
