"""Reason of the gate's leakage rule, with the numbers on both sides."""

from __future__ import annotations

from remint.records import Leakage


def leakage_reason(leakage: Leakage, limit: float) -> str:
    """Return the sentence about copies between the splits, and about the share that may be. ``limit``: that share."""
    count = leakage.exact + leakage.near
    return (
        f"{count} of {leakage.checked} held-out examples are also in the training split ({leakage.exact} exactly,"
        f" {leakage.near} nearly: {leakage.tolerance}); {_by_chance(leakage)}the limit is {limit:.2%} (promotion.leakage)"
    )


def _by_chance(leakage: Leakage) -> str:
    """Return the clause about copies by chance; "" for data that do not repeat by chance."""
    if not leakage.chance:
        return ""
    by_chance = f"independent rows would give {leakage.chance:.2%}"
    if leakage.share:
        return f"{by_chance}, and chance does not explain {leakage.share:.2%}; "
    return f"{by_chance}, and exact copies of less than {leakage.least:.2%} cannot be told from chance; "
