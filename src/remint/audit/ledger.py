"""The ledger against itself: its chain of hashes."""

from __future__ import annotations

from collections.abc import Iterator

from remint.audit.fault import Fault, fault
from remint.ledger import Ledger


def chain(book: Ledger, model: str) -> Iterator[Fault]:
    """Rows that were changed, removed or moved."""
    for line in book.verify(model):
        yield fault(
            "ledger",
            model,
            f"{line}.",
            "Who promoted what, and why, can no longer be believed from this row on.",
            f"Restore the ledger's database from a copy; remint history {model} shows the rows. Nothing is written to it here.",
        )
