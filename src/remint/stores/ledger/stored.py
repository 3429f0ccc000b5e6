"""Rows of the ledger's chains as they are stored: their hashes, and the checks before one is used."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from remint.errors import LedgerError
from remint.records import digest
from remint.stores.ledger.database import Database
from remint.stores.ledger.row import LedgerRow

LATER = ("decision", "trial")


def row_digest(row: dict[str, Any]) -> str:
    """Return the hash of a row's content; "" for content that remint never writes (SQLite accepts bytes as text).

    Fields that schema versions after the first added are left out where they are empty: so older rows still verify.
    """
    try:
        return digest({key: value for key, value in row.items() if key != "hash" and (key not in LATER or value)})
    except (TypeError, ValueError):
        return ""


def lengths(database: Database, table: sa.Table) -> dict[str, int]:
    """Return the sequence of the newest row of each model, without a read of the rows."""
    query = sa.select(table.c.model, sa.func.max(table.c.sequence).label("last")).group_by(table.c.model)
    return {fields["model"]: fields["last"] for fields in database.rows(query)}


def broken_links(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Return a line for each row of a chain, oldest first, that was changed or moved, or that follows a removed one."""
    findings, previous = [], ""
    for place, row in enumerate(rows, 1):
        if row_digest(row) != row["hash"] or row["previous"] != previous or row["sequence"] != place:
            findings.append(f"{what} {row['sequence']} was changed, or a row before it was removed")
        previous = row["hash"]
    return findings


def checked(fields: dict[str, Any]) -> LedgerRow:
    """Return a row whose fields are possible. Raises LedgerError if one is not."""
    try:
        return LedgerRow.model_validate(fields)
    except ValidationError as error:
        raise LedgerError(
            f"row {fields['sequence']} of {fields['model']} in the ledger is damaged: "
            f"run remint history {fields['model']} --verify"
        ) from error


def unchanged(fields: dict[str, Any]) -> LedgerRow:
    """Return a row whose hash is right: an edited row must not make a champion. Raises LedgerError if it was changed."""
    if row_digest(fields) != fields["hash"]:
        raise LedgerError(
            f"row {fields['sequence']} of {fields['model']} in the ledger was changed outside remint, and it is not used: "
            f"run remint history {fields['model']} --verify"
        )
    return checked(fields)


def moved_or_changed(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Describe a row whose hash does not match its content."""
    for other in rows:
        if other is not row and row_digest({**row, "sequence": other["sequence"]}) == row["hash"]:
            return f"was written as row {other['sequence']}: the rows were reordered"
    return "was changed: its hash does not match its content"
