"""Versions that remint gc removed, in the ledger's database: the ledger names versions that are gone, and these are not lost.

A version is written down before it is removed, and from then on the ledger refuses to make it champion: nobody promotes what
is about to go. A process that dies between the two leaves one that is written down and still there, which the next gc removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import sqlalchemy as sa

from remint.errors import NotFoundError
from remint.stores.ledger.schema import collected as _rows
from remint.stores.ledger.schema import open_database


class Collected:
    """The collected versions at one database address. Raises what schema.open_database raises."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def record(self, model: str, keys: Mapping[int, str]) -> None:
        """Writes down that these versions of a model are collected, each by its number with its key."""

        def once() -> None:
            with self._database.write(model) as connection:
                known = set(connection.execute(sa.select(_rows.c.number).where(_rows.c.model == model)).scalars())
                at = datetime.now(UTC).isoformat(timespec="seconds")
                new = [{"model": model, "number": number, "key": keys[number], "at": at} for number in sorted(set(keys) - known)]
                if new:
                    connection.execute(_rows.insert(), new)

        self._database.again(once)

    def forget(self, model: str, numbers: Iterable[int]) -> None:
        """Takes back that these are collected: none of them was removed."""
        wanted = sorted(set(numbers))
        if not wanted:
            return

        def once() -> None:
            with self._database.write(model) as connection:
                connection.execute(_rows.delete().where(_rows.c.model == model, _rows.c.number.in_(wanted)))

        self._database.again(once)

    def versions(self, model: str, key: str | None = None) -> frozenset[int]:
        """The versions of a model that were collected; of one key, which the same weights made again have, too."""
        query = sa.select(_rows.c.number).where(_rows.c.model == model)
        if key is not None:
            query = query.where(_rows.c.key == key)

        def read() -> frozenset[int]:
            with self._database.read() as connection:
                return frozenset(connection.execute(query).scalars())

        return self._database.again(read)


def refuse(connection: sa.Connection, model: str, version: int) -> None:
    """Raises NotFoundError for a version that was collected. Within a writing transaction about the model."""
    query = sa.select(_rows.c.at).where(_rows.c.model == model, _rows.c.number == version)
    at = connection.execute(query).scalar()
    if at is not None:
        raise NotFoundError(
            f"{model}/{version} was removed by remint gc on {at[:10]}: nothing was written; remint models {model}"
        )
