"""Probe of the ledger's database: a row is written, read and deleted in one transaction; its version, clock and schema."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from remint.errors import LedgerError
from remint.stores.ledger.database import Database
from remint.stores.ledger.schema import VERSION, found_version, leases


@dataclass(frozen=True)
class Answer:
    """What the database said. ``ahead``: seconds that its clock is ahead of this machine's."""

    server: tuple[int, ...]  # of PostgreSQL, major and minor; (): SQLite
    ahead: float
    schema: int | None  # None: there are no tables yet
    newest: int = VERSION


def probe(url: str) -> Answer:
    """Try the database. Makes and migrates nothing. Raises LedgerError if it refuses, or returns another row."""
    database = Database(url)

    def work() -> Answer:
        with database.write("probe") as connection:
            found = found_version(connection)
            if found is not None:
                _write(connection)
            if connection.dialect.name != "postgresql":
                return Answer((), 0.0, found)
            before = time.time()
            theirs: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
            ahead = theirs.timestamp() - (before + time.time()) / 2
            return Answer(tuple(connection.dialect.server_version_info or ())[:2], ahead, found)

    return database.run(work)


def _write(connection: sa.Connection) -> None:
    name, holder = f"probe {secrets.token_hex(8)}", secrets.token_hex(8)
    connection.execute(leases.insert().values(name=name, term=1, beats=0, holder=holder))
    read = connection.execute(sa.select(leases.c.holder).where(leases.c.name == name)).scalar()
    connection.execute(leases.delete().where(leases.c.name == name))
    if read != holder:
        raise LedgerError("the ledger returned another row than was written")
