"""Challengers beside the champions: each is loaded when a person asks for it, and two are kept at most."""

from __future__ import annotations

import threading

from remint.runtime.home import Home
from remint.serving import load
from remint.serving.app import canary
from remint.serving.app.limits import Room
from remint.serving.app.slot import Slot, Version
from remint.stores.open import resolve

MOST = 2  # in memory


class Challengers:
    """Loaded challengers by name, the latest last."""

    def __init__(self, home: Home, device: str, most_waiting: int, room: Room) -> None:
        """``room``: shared with the champions."""
        self.home, self.device, self.most_waiting, self.room = home, device, most_waiting, room
        self.slots: dict[str, Slot] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> Version:
        """Load the challenger that the ledger names now. Raises NotFoundError if there is none."""
        ref = f"{name}@challenger"
        with self._lock:
            found, held = resolve(self.home, ref), self.slots.get(name)
            if held is not None and held.version is not None and held.version.number == found.version:
                return held.version
            served = load.of_version(self.home, found, self.device)
            canary.check_samples(served)
            slot = Slot(ref, self.most_waiting, self.room)
            slot.version = Version.from_now(served, found.version)
            former = self.slots.pop(name, None)
            self.slots[name] = slot
            dropped = [*([former] if former else []), *(self.slots.pop(each) for each in list(self.slots)[:-MOST])]
        for each in dropped:
            each.close()
        return slot.version
