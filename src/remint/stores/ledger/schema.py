"""Tables of the ledger's database: one metadata, one schema version, and the migration from older versions.

version 1    four parts, each with a version table: ledger, collected versions, seed spreads, leases
version 2    one version for all tables; a row of the ledger holds the digest of its Decision
version 3    events of serving
version 4    counts of shadow answers
version 5    a row of the ledger holds its trial; held-out examples that decisions have seen; checks for drift
"""

from __future__ import annotations

import sqlalchemy as sa

from remint.errors import LedgerError, NotFoundError
from remint.runtime.addresses import sqlite_file
from remint.stores.ledger.database import Database

VERSION = 5
NO_LEDGER = "there is no ledger at {}: the first remint run makes it; are REMINT_LEDGER and REMINT_HOME right?"
PARTS = ("collected_schema", "spreads_schema", "leases_schema")  # version tables of version 1, besides ledger_schema

_metadata = sa.MetaData()
_version = sa.Table("ledger_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))

ledger = sa.Table(
    "ledger",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("champion_before", sa.Integer),
    sa.Column("champion_after", sa.Integer),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("evidence", sa.String(64), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("decision", sa.String(64), nullable=False, server_default=""),
    sa.Column("trial", sa.Text, nullable=False, server_default=""),  # Trial as canonical JSON (promotion/trials.py)
)
seen_examples = sa.Table(
    "seen_examples",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),  # of the ledger's row that saw them first
    sa.Column("examples", sa.Text, nullable=False),  # digests, in hexadecimal, separated by blanks
)
drift_checks = sa.Table(
    "drift_checks",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.Text, nullable=False),  # DriftCheck as canonical JSON
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
collected = sa.Table(
    "collected_versions",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
spreads = sa.Table(
    "seed_spreads",
    _metadata,
    sa.Column("pipeline", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("spread", sa.Text, nullable=False),  # SeedSpread as JSON
)
serving_events = sa.Table(
    "serving_events",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
shadow_counts = sa.Table(
    "shadow_counts",
    _metadata,
    sa.Column("request", sa.String(64), primary_key=True),  # hash of the ledger's row by which a version awaits shadow
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counts", sa.Text, nullable=False),  # ShadowCounts as JSON
)
leases = sa.Table(
    "leases",
    _metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("term", sa.BigInteger, nullable=False),  # how often the lease was taken
    sa.Column("beats", sa.BigInteger, nullable=False),  # increments in this term
    sa.Column("holder", sa.Text, nullable=False),  # Holder as JSON; "" if it is free
)

DATA = tuple(table for table in _metadata.sorted_tables if table is not _version)  # all tables with content


def open_database(url: str, *, make: bool = True) -> Database:
    """Return the database at one address. Make or migrate its tables first if needed, once, under the database's lock.

    ``make=False`` makes and migrates nothing: it raises NotFoundError if there is no ledger, LedgerError if an older remint
    wrote it. Raises LedgerError if a newer remint wrote it, and the errors of ``Database``.
    """
    if not make and (place := sqlite_file(url)) and not place.exists():
        raise NotFoundError(NO_LEDGER.format(place))
    database = Database(url)

    def look() -> int | None:
        with database.read() as connection:
            return found_version(connection)

    def migrate() -> int | None:
        with database.write("schema") as connection:  # an older remint makes its tables under the same lock
            found = found_version(connection)
            if found not in (None, *range(1, VERSION)):
                return found
            if found == 1:
                connection.exec_driver_sql("ALTER TABLE ledger ADD COLUMN decision VARCHAR(64) DEFAULT '' NOT NULL")
            if found is not None:
                connection.exec_driver_sql("ALTER TABLE ledger ADD COLUMN trial TEXT DEFAULT '' NOT NULL")
            _metadata.create_all(connection)
            connection.execute(_version.delete())
            connection.execute(_version.insert().values(version=VERSION))
            for name in PARTS:  # an older remint then refuses the first of them that it opens, before it trains anything
                if sa.inspect(connection).has_table(name):
                    connection.execute(sa.table(name, sa.column("version")).update().values(version=VERSION))
            return VERSION

    found = database.run(look)
    if not make and found is None:
        raise NotFoundError(NO_LEDGER.format(database.address))
    if not make and found is not None and found < VERSION:
        raise LedgerError(f"the ledger at {database.address} has schema {found}: run remint models, which brings it to {VERSION}")
    if found != VERSION:
        found = database.run(migrate)
    if found != VERSION:
        raise LedgerError(
            f"the ledger at {database.address} has schema {found}, this remint supports {VERSION}: "
            "install the version of remint that wrote it"
        )
    return database


def reach(url: str) -> None:
    """Raise LedgerError if the database is out of reach, refuses, or was written by a newer remint. Makes nothing."""
    if (place := sqlite_file(url)) and not place.exists():
        return  # the first run makes it
    database = Database(url)

    def look() -> int | None:
        with database.read() as connection:
            return found_version(connection)

    found = database.run(look)
    if found not in (None, *range(1, VERSION + 1)):
        raise LedgerError(
            f"the ledger at {database.address} has schema {found}, this remint supports {VERSION}: "
            "install the version of remint that wrote it"
        )


def found_version(connection: sa.Connection) -> int | None:
    """Return the schema version of the tables; None if the ledger has no tables yet."""
    if not sa.inspect(connection).has_table(_version.name):
        return None
    return connection.execute(sa.select(sa.func.max(_version.c.version))).scalar() or 0
