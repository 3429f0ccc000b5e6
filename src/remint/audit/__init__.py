"""git, DVC's remote, MLflow, its files and the ledger held against each other (Prefect's part is in flows/audit.py)."""

from __future__ import annotations

from remint import stores
from remint.audit import ledger
from remint.audit.fault import Fault
from remint.home import Home
from remint.records import Finding

__all__ = ["Fault", "faults", "findings"]


def faults(home: Home) -> list[Fault]:
    """Everything that is found, with how it is mended."""
    book = stores.ledger(home)
    return [found for model in sorted({row.model for row in book.rows()}) for found in ledger.chain(book, model)]


def findings(home: Home) -> list[Finding]:
    """Everything that is found. Changes nothing."""
    return [found.finding for found in faults(home)]
