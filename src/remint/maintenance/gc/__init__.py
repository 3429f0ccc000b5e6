"""remint gc: what no root needs is listed, and removed where that is asked for and no root is damaged."""

from __future__ import annotations

from typing import Any

from remint.errors import IntegrityError
from remint.maintenance import audit
from remint.maintenance.gc.plan import OLDER_THAN, Plan, Say, apply, plan
from remint.maintenance.gc.reach import Garbage, Thing, unreached
from remint.promotion.roots import WINDOW
from remint.records import Finding
from remint.runtime import jobs
from remint.runtime.home import Home

__all__ = ["OLDER_THAN", "WINDOW", "Garbage", "Plan", "Say", "Thing", "apply", "collect", "plan", "unreached"]


def collect_garbage(home: Home, *, remove: bool, older_than: float, window: int, say: Say) -> dict[str, Any]:
    """What ``remint gc --json`` prints: ``garbage`` and ``bytes``, what is kept as a root, and whether it was removed.

    Arguments: ``older_than`` days, ``window`` champions of each model that a roll back can go to.
    Raises IntegrityError where the stores do not hold a root whole, or cannot be asked: nothing is removed then.
    """
    if not remove:
        return _answer(plan(home, older_than, window, say), [], None)
    with jobs.collecting(home):  # no job begins meanwhile, and those that run are known
        say("auditing the roots")
        damaged = _damaged(home)
        if damaged:
            first = damaged[0]
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            root = f"{first.damages}, which must not be lost, is damaged" if first.damages else "not all could be audited"
            raise IntegrityError(f"{root}: {first.thing}: {first.what}{more}; nothing was removed; {first.repair}")
        planned = plan(home, older_than, window, say)
        said = apply(planned, say)
        say("auditing the roots again")
        return _answer(planned, said, _damaged(home))


def _damaged(home: Home) -> list[Finding]:
    """Findings of damaged roots, and of stores that could not be asked whether they hold them."""
    return [finding for finding in audit.findings(home) if finding.damages or finding.kind == "unreachable"]


def _answer(planned: Plan, said: list[str], damaged: list[Finding] | None) -> dict[str, Any]:
    return {
        "applied": damaged is not None,
        "garbage": [each.to_json() for each in planned.garbage],
        "bytes": planned.bytes,
        "roots": [{"version": root.version.ref, "why": root.why} for root in planned.roots],
        "notes": [*planned.notes, *said],
        "damaged": None if damaged is None else [finding.to_json() for finding in damaged],
    }
