"""Row of the promotion ledger."""

from __future__ import annotations

from typing import Literal

from remint.records import Record


class LedgerRow(Record):
    """One row of the promotion ledger. ``hash`` is over all other fields."""

    model: str
    sequence: int
    action: Literal["promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow", "rejected", "rolled_back"]
    champion_before: int | None
    champion_after: int | None
    version: int  # the version that the row is about
    who: str
    why: str
    evidence: str  # digest of the basis of the decision, "" for a person's act
    at: str  # ISO 8601, UTC
    previous: str  # hash of the row before, "" for the first
    hash: str
    decision: str = ""  # digest of the Decision; "" for a person's act, and in rows of older versions of remint
