"""remint gc: list everything that no root needs, and remove it on request if no root is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remint.errors import IntegrityError
from remint.maintenance import audit
from remint.maintenance.audit.fault import Finding
from remint.maintenance.gc.plan import OLDER_THAN, Plan, Say, apply, plan
from remint.maintenance.gc.reach import Garbage, Thing, unreached
from remint.promotion.roots import WINDOW, Root
from remint.runtime import jobs
from remint.runtime.home import Home

__all__ = [
    "OLDER_THAN",
    "WINDOW",
    "Collection",
    "Garbage",
    "Plan",
    "Say",
    "Thing",
    "apply",
    "collect_garbage",
    "plan",
    "unreached",
]


@dataclass(frozen=True)
class Collection:
    """Result of a collection: the garbage, the roots, and whether the garbage was removed."""

    garbage: tuple[Garbage, ...]
    roots: tuple[Root, ...]
    notes: tuple[str, ...]
    damaged: tuple[Finding, ...] | None  # findings after the removal; None if no removal was requested

    @property
    def applied(self) -> bool:
        return self.damaged is not None

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.garbage)

    def to_json(self) -> dict[str, Any]:
        return {
            "applied": self.applied,
            "garbage": [each.to_json() for each in self.garbage],
            "bytes": self.bytes,
            "roots": [{"version": root.version.ref, "why": root.why} for root in self.roots],
            "notes": list(self.notes),
            "damaged": None if self.damaged is None else [finding.to_json() for finding in self.damaged],
        }


def collect_garbage(home: Home, *, remove: bool, older_than: float, window: int, say: Say) -> Collection:
    """List everything that no root needs. ``remove``: remove it too.

    Arguments: ``older_than`` days, ``window`` champions of each model that a rollback can restore.
    Raises IntegrityError if a root is damaged, or a store does not answer: nothing is removed then.
    """
    if not remove:
        planned = plan(home, older_than, window, say)
        return Collection(planned.garbage, planned.roots, planned.notes, None)
    with jobs.collecting(home):  # no job begins meanwhile, and the running ones are known
        say("auditing the roots")
        damaged = _damaged(home)
        if damaged:
            first = damaged[0]
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            root = f"{first.damages}, which must be kept, is damaged" if first.damages else "a store could not be audited"
            raise IntegrityError(f"{root}: {first.thing}: {first.what}{more} Nothing was removed. {first.repair}")
        planned = plan(home, older_than, window, say)
        said = apply(planned, say)
        say("auditing the roots again")
        return Collection(planned.garbage, planned.roots, (*planned.notes, *said), tuple(_damaged(home)))


def _damaged(home: Home) -> list[Finding]:
    """Return the findings about damaged roots, and about stores that did not answer."""
    return [finding for finding in audit.findings(home) if finding.damages or finding.kind == "unreachable"]
