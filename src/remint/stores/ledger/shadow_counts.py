"""Answers of a shadow in the ledger's database: counts and numbers of each server, append-only but
for remint gc, which removes those of shadows that ended.

A version that awaits shadow answers copies of requests on every server of its model. Each server writes what it counted since
its last write, so a crash loses at most that. A row is one part of one server, and is written once however often its
transaction is repeated. The role of a server needs to read and insert here.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from pydantic import ValidationError

from remint.errors import IntegrityError
from remint.records import Record
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.schema import shadow_counts as _rows

Pair = tuple[float, float]  # of the champion, of the version


class ShadowCounts(Record):
    """Part of what one server counted. Each copy of a request counts once, answered or not."""

    host: str
    began: str  # ISO 8601, UTC
    ended: str
    copies: int  # that the version was asked, errors included
    dropped: int  # copies that found the queue full, and were not asked
    errors: dict[str, int]  # by method and kind of error; no text of a request
    seconds: tuple[Pair, ...]  # of each copy without an error
    scores: tuple[Pair, ...]  # log p in nats of the first example of a copy, where both have a density


class ShadowCountsTable:
    """Shadow counts at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """``make=False``: use tables that exist, and make none."""
        self._database = open_database(url, make=make)

    def append(self, request: str, server: str, part: int, counts: ShadowCounts) -> None:
        """Append one part. ``request``: hash of the ledger's row; ``server``: a name that no other process has."""
        place = {"request": request, "server": server, "part": part}

        def transaction() -> None:
            with self._database.write(f"shadow {server}") as connection:
                if connection.execute(_rows.select().filter_by(**place)).first() is None:  # else only the reply was lost
                    connection.execute(_rows.insert().values(**place, counts=counts.model_dump_json()))

        self._database.run(transaction)

    def of(self, request: str) -> list[ShadowCounts]:
        """Return the parts of all servers for one row. Raises IntegrityError if one is damaged."""
        query = _rows.select().where(_rows.c.request == request).order_by(_rows.c.server, _rows.c.part)

        def read() -> list[str]:
            with self._database.read() as connection:
                return [row.counts for row in connection.execute(query)]

        try:
            return [ShadowCounts.model_validate_json(counts) for counts in self._database.run(read)]
        except ValidationError as error:
            raise IntegrityError(f"shadow counts of the ledger's row {request[:12]} are damaged") from error

    def sizes(self) -> dict[str, int]:
        """Return the number of characters that are stored for each row."""
        query = sa.select(_rows.c.request, sa.func.sum(sa.func.length(_rows.c.counts))).group_by(_rows.c.request)

        def read() -> dict[str, int]:
            with self._database.read() as connection:
                return {request: int(size) for request, size in connection.execute(query)}

        return self._database.run(read)

    def remove(self, requests: Collection[str]) -> None:
        """Remove the parts of all servers for these rows."""

        def transaction() -> None:
            with self._database.write("shadow") as connection:
                for request in requests:
                    connection.execute(_rows.delete().where(_rows.c.request == request))

        if requests:
            self._database.run(transaction)
