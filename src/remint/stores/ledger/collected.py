"""Record of the versions that remint gc removed, in the ledger's database: removed on purpose, not lost.

A version is recorded before it is removed. From then on the ledger refuses to make it champion. If a process dies between the
two, the version is recorded and still there; the next gc removes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import sqlalchemy as sa

from remint.errors import NotFoundError
from remint.stores.ledger.schema import collected as _rows
from remint.stores.ledger.schema import open_database


class CollectedVersions:
    """Collected versions at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def record(self, model: str, keys: Mapping[int, str]) -> None:
        """Record that these versions of a model are collected. ``keys``: the key of each version number."""

        def transaction() -> None:
            with self._database.write(model) as connection:
                known = set(connection.execute(sa.select(_rows.c.number).where(_rows.c.model == model)).scalars())
                at = datetime.now(UTC).isoformat(timespec="seconds")
                new = [{"model": model, "number": number, "key": keys[number], "at": at} for number in sorted(set(keys) - known)]
                if new:
                    connection.execute(_rows.insert(), new)

        self._database.run(transaction)

    def forget(self, model: str, numbers: Iterable[int]) -> None:
        """Delete the record of these versions: they were not removed."""
        wanted = sorted(set(numbers))
        if not wanted:
            return

        def transaction() -> None:
            with self._database.write(model) as connection:
                connection.execute(_rows.delete().where(_rows.c.model == model, _rows.c.number.in_(wanted)))

        self._database.run(transaction)

    def versions(self, model: str, key: str | None = None) -> frozenset[int]:
        """Return the collected versions of a model; only those with ``key`` if it is given (equal weights share a key)."""
        query = sa.select(_rows.c.number).where(_rows.c.model == model)
        if key is not None:
            query = query.where(_rows.c.key == key)

        def read() -> frozenset[int]:
            with self._database.read() as connection:
                return frozenset(connection.execute(query).scalars())

        return self._database.run(read)


def refuse(connection: sa.Connection, model: str, version: int) -> None:
    """Raise NotFoundError if a version was collected. Call it inside a writing transaction for the model."""
    query = sa.select(_rows.c.at).where(_rows.c.model == model, _rows.c.number == version)
    at = connection.execute(query).scalar()
    if at is not None:
        raise NotFoundError(
            f"{model}/{version} was removed by remint gc on {at[:10]}: nothing was written; "
            f"remint models {model} lists its versions"
        )
