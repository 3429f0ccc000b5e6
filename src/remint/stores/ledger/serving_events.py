"""Events of serving in the ledger's database: which host serves which version, append-only, hash-chained for each model.

They are no rows of the promotion ledger, whose last row decides the champion. ``hash`` covers all other fields of a row,
``previous`` is the hash of the model's row before. The role of a server needs to read the ledger, and to read and insert here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import ValidationError

from remint.errors import LedgerError
from remint.records import Record
from remint.stores.ledger.row import Moment
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.schema import serving_events as _rows
from remint.stores.ledger.stored import broken_links, row_digest

# loaded: the first version of a server; shadowed: it answers copies of requests; refused: the former version goes on
Event = Literal["loaded", "switched", "shadowed", "refused"]


class ServingEvent(Record):
    """One event of one host. ``hash`` is over all other fields."""

    model: str
    sequence: int
    event: Event
    version: int
    host: str
    why: str
    at: Moment
    previous: str  # hash of the row before, "" for the first
    hash: str


class ServingEvents:
    """Serving events at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """``make=False``: use tables that exist, and make none."""
        self._database = open_database(url, make=make)

    def append(self, model: str, event: Event, version: int, host: str, why: str, at: datetime | None = None) -> ServingEvent:
        """Append one event, of the time ``at`` (None: now). If it equals the host's newest about the model, that is returned."""
        about = {"model": model, "event": event, "version": version, "host": host, "why": why}

        def transaction() -> ServingEvent:
            with self._database.write(f"serving {model}") as connection:
                of_model = _rows.select().where(_rows.c.model == model).order_by(_rows.c.sequence.desc()).limit(1)
                own = connection.execute(of_model.where(_rows.c.host == host)).mappings().first()
                if own is not None and about.items() <= dict(own).items():
                    return _event(dict(own))
                last = connection.execute(of_model).mappings().first()
                fields = {
                    **about,
                    "sequence": last["sequence"] + 1 if last else 1,
                    "at": (at or datetime.now(UTC)).isoformat(timespec="microseconds"),
                    "previous": last["hash"] if last else "",
                }
                fields["hash"] = row_digest(fields)
                connection.execute(_rows.insert().values(**fields))
                return _event(fields)

        return self._database.run(transaction)

    def of(self, model: str) -> list[ServingEvent]:
        """Return the events of one model, oldest first. Raises LedgerError if a row is damaged."""
        return [_event(fields) for fields in self._database.rows(_of(model))]

    def about(self, model: str, version: int) -> list[ServingEvent]:
        """Return the events about one version, oldest first."""
        return [event for event in self.of(model) if event.version == version]

    def newest(self, model: str) -> ServingEvent | None:
        """Return the newest event of one model; None if there is none."""
        query = _rows.select().where(_rows.c.model == model).order_by(_rows.c.sequence.desc()).limit(1)
        return next((_event(fields) for fields in self._database.rows(query)), None)

    def newest_of_hosts(self, model: str) -> list[ServingEvent]:
        """Return the newest event of each host about one model, oldest first."""
        last = sa.select(sa.func.max(_rows.c.sequence)).where(_rows.c.model == model).group_by(_rows.c.host)
        query = _rows.select().where(_rows.c.model == model, _rows.c.sequence.in_(last)).order_by(_rows.c.sequence)
        return [_event(fields) for fields in self._database.rows(query)]

    def verify(self, model: str) -> list[str]:
        """Return a line for each row that was changed, removed or moved; [] if the chain is intact."""
        return broken_links(self._database.rows(_of(model)), f"{model}: serving event")


def _of(model: str) -> sa.Select[Any]:
    return _rows.select().where(_rows.c.model == model).order_by(_rows.c.sequence)


def _event(fields: dict[str, Any]) -> ServingEvent:
    try:
        return ServingEvent.model_validate(fields)
    except ValidationError as error:
        raise LedgerError(f"serving event {fields['sequence']} of {fields['model']} is damaged") from error
