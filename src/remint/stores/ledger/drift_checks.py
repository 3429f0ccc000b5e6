"""Checks for drift in the ledger's database: append-only, hash-chained for each model.

They are no rows of the promotion ledger. ``hash`` covers model, sequence, content and the hash of the model's row before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from remint.errors import LedgerError
from remint.records import MetricValue, Record, canonical
from remint.stores.ledger.row import Moment
from remint.stores.ledger.schema import drift_checks as _rows
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.stored import broken_links, lengths, row_digest


class DriftCheck(Record):
    """One check of a champion: the data of that moment against those that it was trained on, and its metrics on them."""

    model: str
    champion: int
    reign: int  # sequence of the ledger's row that made it champion
    number: int  # of this check among those of this reign, from 1
    dataset: str  # digest of the DatasetVersion that was checked
    added: int  # training examples since the champion was trained
    removed: int
    p: float | None  # smallest corrected p-value; None: nothing could be tested
    level: float  # of this check
    alarm: bool  # whether it opened an alarm
    after: int  # ledger sequence; the first verdict behind it closes the alarm
    summary: str  # of the drift, one sentence
    metrics: dict[str, MetricValue]  # of the champion on the held-out split of that moment
    at: Moment


class DriftChecks:
    """Drift checks at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """``make=False``: use tables that exist, and make none."""
        self._database = open_database(url, make=make)

    def append(self, check: DriftCheck) -> DriftCheck | None:
        """Append a check. Return it, or None if another process was faster with this number: nothing was written then."""
        content = canonical(check.to_json())

        def transaction() -> DriftCheck | None:
            with self._database.write(f"drift {check.model}") as connection:
                last = connection.execute(_of(check.model, newest=True)).mappings().first()
                if last is not None and last["content"] == content:
                    return check  # the first commit succeeded, only its reply was lost
                before = _check(dict(last)) if last else None
                if before is not None and before.reign == check.reign and before.number >= check.number:
                    return None
                fields: dict[str, Any] = {"model": check.model, "sequence": last["sequence"] + 1 if last else 1}
                fields |= {"content": content, "previous": last["hash"] if last else ""}
                connection.execute(_rows.insert().values(**fields, hash=row_digest(fields)))
                return check

        return self._database.run(transaction)

    def of(self, model: str) -> list[DriftCheck]:
        """Return the checks of one model, oldest first. Raises LedgerError if a row is damaged."""
        return [_check(fields) for fields in self._database.rows(_of(model))]

    def newest(self, model: str) -> DriftCheck | None:
        """Return the newest check of one model; None if there is none."""
        return next((_check(fields) for fields in self._database.rows(_of(model, newest=True))), None)

    def head(self, model: str) -> str:
        """Return the hash of the newest row of one model, "" if there is none."""
        return next((str(fields["hash"]) for fields in self._database.rows(_of(model, newest=True))), "")

    def lengths(self) -> dict[str, int]:
        """Return the sequence of the newest row of each model."""
        return lengths(self._database, _rows)

    def verify(self, model: str) -> list[str]:
        """Return a line for each row that was changed, removed or moved; [] if the chain is intact."""
        return broken_links(self._database.rows(_of(model)), f"{model}: drift check")


def now() -> str:
    """Return the time of a check."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _of(model: str, *, newest: bool = False) -> sa.Select[Any]:
    query = _rows.select().where(_rows.c.model == model)
    return query.order_by(_rows.c.sequence.desc()).limit(1) if newest else query.order_by(_rows.c.sequence)


def _check(fields: dict[str, Any]) -> DriftCheck:
    try:
        if row_digest(fields) != fields["hash"]:
            raise ValueError("its hash does not match")
        return DriftCheck.model_validate_json(fields["content"])
    except (ValidationError, ValueError) as error:
        raise LedgerError(
            f"drift check {fields['sequence']} of {fields['model']} is damaged or was changed: run remint audit"
        ) from error
