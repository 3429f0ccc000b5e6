"""Alarm for drift, with a false-alarm rate over its whole life.

Check k of a champion has the level RATE * share(k), and all levels together are RATE (levels.py). So without drift at most a
share RATE of champions ever has an alarm, however often and however long it is checked, and whatever the checks have in common
(Bonferroni). Each check compares all examples that are new since the champion was trained, so power grows with them.

The p-values of drift.py are analytic: they reach any level. Permutations would need a million shuffles for the levels of a year.
"""

from __future__ import annotations

from remint.evaluation import levels
from remint.records import Drift

RATE = 0.05  # largest share of champions with an alarm if nothing drifts


def level(check: int) -> float:
    """Return the level of check number ``check`` of a champion, counted from 1."""
    return RATE * levels.share(check)


def rises(drift: Drift, check: int) -> bool:
    """Return whether a check finds drift."""
    return drift.p is not None and drift.p <= level(check)
