"""Follow the ledger: load the new champion beside the present one, check it, and switch.

    poll -> the ledger's champion (or NAME@challenger, NAME/7) -> fetch and verify its bytes -> load -> recorded samples
         -> canary -> switch
         -> the version that awaits shadow -> the same checks -> it answers copies of requests (shadow.py)

The ledger is only read; an alias in MLflow is not followed. What fails keeps the present version, is recorded once as a serving
event, and is tried again after a minute, then after twice the pause before, up to half an hour: its store may be repaired, or the
machine was too busy for the canary. While a store is away the server goes on with what it has, and records its events later.
"""

from __future__ import annotations

import socket
import threading
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from remint.errors import IntegrityError, NotFoundError, RemintError, RunError
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.serving import load
from remint.serving.app import canary
from remint.serving.app.shadow import Shadow
from remint.serving.app.slot import Slot, Version
from remint.serving.model import Array, ServedModel
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.chain import describe
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.serving_events import Event
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_serving_events, open_shadow_counts, open_tracking, resolve

ShadowSettings = Callable[[Home, LedgerRow], ServingSettings | None]  # of a version that awaits shadow; None: not known yet

STOP_SECONDS = 5.0
RETRY_SECONDS, RETRY_MOST = 60.0, 1_800.0  # first and longest pause until a refused version is tried again
FAILURES = "report/failures.npz"  # held-out examples of a version's report


def no_shadow(_: Home, __: LedgerRow) -> None:
    """Let no version answer copies of requests."""


class Refusal(NamedTuple):
    """A version that failed its checks. Of a shadow another row of the ledger is another subject."""

    subject: str  # NAME/7, or the hash of the ledger's row by which it awaits shadow
    version: int
    why: str  # it failed at the last try
    pause: float  # seconds
    again: float  # time.monotonic() at which it is tried again


Refusals = dict[str, Refusal]  # by name


class Unrecorded(NamedTuple):
    """An event that is not in the ledger's database yet, which may be away."""

    model: str
    event: Event
    version: int
    why: str
    at: datetime


class Follower:
    """Follows the ledger for some names until it is stopped. ``tell`` gets one line for each event."""

    def __init__(
        self,
        home: Home,
        slots: dict[str, Slot],
        every: float,
        device: str,
        tell: Callable[[str], None],
        shadow_settings: ShadowSettings = no_shadow,
    ) -> None:
        self.home, self.slots, self.every, self.device, self.tell = home, slots, every, device, tell
        self.shadow_settings = shadow_settings
        self.champions_refused: Refusals = {}
        self.shadows_refused: Refusals = {}
        self.absent: dict[str, str] = {}  # by name: the ledger has no such version yet, in words
        self.problems: dict[str, str] = {}  # by name: why the ledger or a store could not be read at the last poll
        self.switches = 0
        self._unrecorded: list[Unrecorded] = []  # oldest first
        self._wait = False  # for a version of a name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def start(self, *, wait: bool = False) -> None:
        """Load each name once, in this thread, then follow. Raises NotFoundError if a name has no such version.

        ``wait``: follow at once instead, and load a name when it has a version.
        """
        self._wait = wait
        for name in () if wait else self.slots:
            self.look(name, first=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following. A look that takes longer, at a locked ledger or a large bundle, ends with the process."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)

    def _follow(self) -> None:
        pause = 0.0 if self._wait else self.every
        while not self._stop.wait(pause):
            pause = self.every
            for name in self.slots:
                self.look(name)
        for slot in self.slots.values():
            self._end_shadow(slot)

    def refusal(self, name: str) -> Refusal | None:
        """Return what was tried, as a champion or else as a shadow, and failed its checks; None if there is none."""
        return self.champions_refused.get(name) or self.shadows_refused.get(name)

    def look(self, name: str, *, first: bool = False) -> None:
        """Switch a name to the version that the ledger names, if that is another one and passes its checks."""
        try:
            self._write_events()
            self._look(name)
            self._look_at_shadow(self.slots[name])
            self.problems.pop(name, None)
            self.absent.pop(name, None)
        except RemintError as error:  # a store is away: the next poll tries again
            if isinstance(error, NotFoundError) and self.slots[name].version is None:
                if first:
                    raise
                if self._wait:
                    self.absent[name] = str(error)
                    return
            self._problem(name, error)
        except Exception as error:  # noqa: BLE001  no fault may end the thread: it would follow no longer, in silence
            self._problem(name, RunError(f"{type(error).__name__}: {error}"))

    def _look(self, name: str) -> None:
        slot = self.slots[name]
        version, present = resolve(self.home, slot.ref), slot.version
        if present is not None and present.number == version.version:
            self.champions_refused.pop(name, None)
            return
        if self._pauses(self.champions_refused, name, version.ref):
            return
        try:
            served, checked = self._checked(version, present.served if present else None)
        except (IntegrityError, MemoryError) as error:
            self._refuse(self.champions_refused, name, version.ref, version.version, str(error))
            return
        self.champions_refused.pop(name, None)
        slot.version = Version.from_now(served, version.version, self._decision(version))
        self.switches += present is not None
        self._record(slot.name, version.version, "switched" if present else "loaded", checked)

    def _look_at_shadow(self, slot: Slot) -> None:
        """Write what a shadow counted; begin one if a version awaits it, and end it if that is decided."""
        if slot.shadow is not None:
            slot.shadow.flush(open_shadow_counts(self.home, make=False).append)
        if slot.version is None or not slot.follows_champion:
            return
        row = open_ledger(self.home, make=False).awaiting_shadow(slot.name)
        if row is None or row.champion_before != slot.version.number:
            self._end_shadow(slot)
            self.shadows_refused.pop(slot.name, None)
            return
        if slot.shadow is not None and slot.shadow.request == row.hash:
            return
        if self._pauses(self.shadows_refused, slot.name, row.hash):
            return
        self._end_shadow(slot)
        settings = self.shadow_settings(self.home, row)
        if settings is None:
            return  # its decision is not kept yet
        try:
            version = open_tracking(self.home).version(f"{row.model}/{row.version}")
            served, checked = self._checked(version, slot.version.served)
        except (IntegrityError, MemoryError, NotFoundError) as error:  # not found: it was deleted
            self._refuse(self.shadows_refused, slot.name, row.hash, row.version, f"as a shadow: {error}")
            return
        self.shadows_refused.pop(slot.name, None)
        about = Version.from_now(served, version.version, describe(row))
        slot.shadow = Shadow(about, row.hash, slot.version.number, settings, lambda: slot.idle)
        self._record(row.model, row.version, "shadowed", checked)

    def _pauses(self, refused: Refusals, name: str, subject: str) -> bool:
        found = refused.get(name)
        return found is not None and found.subject == subject and time.monotonic() < found.again

    def _refuse(self, refused: Refusals, name: str, subject: str, version: int, why: str) -> None:
        """Note that a version failed its checks, and when it is tried again. Only its first failure is recorded."""
        before = refused.get(name)
        if before is None or before.subject != subject:
            pause = RETRY_SECONDS
            self._record(name, version, "refused", why)
        else:
            pause = min(RETRY_MOST, 2.0 * before.pause)
        refused[name] = Refusal(subject, version, why, pause, time.monotonic() + pause)

    def _end_shadow(self, slot: Slot) -> None:
        if slot.shadow is None:
            return
        shadow, slot.shadow = slot.shadow, None
        shadow.close()
        try:
            shadow.flush(open_shadow_counts(self.home, make=False).append)
        except RemintError as error:
            self.tell(f"{slot.name}: the last answers of its shadow were not recorded: {error}")

    def _checked(self, version: ModelVersion, present: ServedModel | None) -> tuple[ServedModel, str]:
        """Fetch, verify, load and try a version. Raises IntegrityError if it must not be served."""
        served = load.of_version(self.home, version, self.device)
        canary.check_samples(served)
        return served, canary.run(served, present, self._held_out(version, served))

    def _held_out(self, version: ModelVersion, served: ServedModel) -> Array | None:
        """Return held-out examples of the version's report; None if it has none that this model can take."""
        try:
            with scratch.folder() as folder:
                path = open_tracking(self.home).attachment(version, FAILURES, folder)
                with np.load(path, allow_pickle=False) as kept:
                    x_NX: Array = kept["x_NX"]
        except (RemintError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return x_NX if x_NX.shape[1:] == served.spec.shape else None

    def _decision(self, version: ModelVersion) -> str:
        try:
            rows = open_ledger(self.home, make=False).about(version.name, version.version)
        except RemintError:
            return ""
        return describe(rows[-1]) if rows else ""

    def _problem(self, name: str, error: RemintError) -> None:
        if self.problems.get(name) != str(error):
            self.tell(f"{name}: {error}; it goes on with what it has")
        self.problems[name] = str(error)

    def _record(self, name: str, version: int, event: Event, why: str) -> None:
        self.tell(f"{name}/{version} {event}: {why}")
        self._unrecorded.append(Unrecorded(name, event, version, why, datetime.now(UTC)))
        if problem := self._write_events():
            self.tell(f"{name}/{version}: the event is not recorded yet: {problem}")

    def _write_events(self) -> str:
        """Record the events that are not recorded yet. Return the problem, "" if there is none; the next look tries again."""
        try:
            while self._unrecorded:
                event = self._unrecorded[0]
                events = open_serving_events(self.home, make=False)
                events.append(event.model, event.event, event.version, socket.gethostname(), event.why, event.at)
                del self._unrecorded[0]
        except RemintError as error:
            return str(error)
        return ""
