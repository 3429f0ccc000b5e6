"""Garbage in the ledger's database: counted answers of shadows that ended."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from remint.maintenance.gc.reach import LEDGER, Thing
from remint.runtime.home import Home
from remint.stores.ledger.row import LedgerRow
from remint.stores.open import open_ledger, open_shadow_counts

WHY = "answers of {}/{} to copies of requests: its shadow ended"


def things(home: Home, versions: Collection[str]) -> Iterator[Thing]:
    """Yield the answers of each shadow that ended, since then; of a version that is not in ``versions``, since ever."""
    sizes = open_shadow_counts(home).sizes()
    rows = open_ledger(home).rows() if sizes else []
    for row in rows:
        ended = _ended(row, rows) if row.hash in sizes else None
        if ended is not None:
            since = ended if f"{row.model}/{row.version}" in versions else 0.0
            yield Thing(LEDGER, row.hash, since, WHY.format(row.model, row.version), sizes[row.hash])


def remove(home: Home, requests: Collection[str]) -> None:
    open_shadow_counts(home).remove(requests)


def _ended(row: LedgerRow, rows: Sequence[LedgerRow]) -> float | None:
    """Return when a version awaited shadow no longer, as Unix time: it was decided, or another one became champion."""
    for later in rows:
        follows = later.model == row.model and later.sequence > row.sequence
        if follows and (later.version == row.version or later.champion_after != row.champion_before):
            return datetime.fromisoformat(later.at).timestamp()
    return None
