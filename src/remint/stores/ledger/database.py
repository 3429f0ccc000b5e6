"""SQL database of the ledger: one address, transactions with retries, and its errors as remint's errors.

SQLite is the default; PostgreSQL uses the driver psycopg 3. Writers of one subject are serialised: by BEGIN IMMEDIATE on
SQLite, by an advisory lock on PostgreSQL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from remint.errors import LedgerError, SettingsError
from remint.runtime.addresses import sqlite_file, with_driver
from remint.runtime.retry import doubling, retry

BUSY = 60.0  # seconds that a writer waits for other writers
ATTEMPTS = 6  # tries of a transaction whose connection is lost, over 15 seconds

Result = TypeVar("Result")


class Database:
    """Database at one address.

    Raises SettingsError if the address is neither sqlite:///FILE nor postgresql://.., LedgerError if the database cannot be
    reached.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)

    @property
    def address(self) -> str:
        """Address without its password."""
        return str(self._engine.url)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, subject: str) -> Iterator[sa.Connection]:
        """Open a transaction that overlaps no other writing transaction for ``subject``."""
        with self._engine.connect().execution_options(remint_write=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                lock_id = int.from_bytes(hashlib.sha256(f"remint ledger {subject}".encode()).digest()[:8], "big", signed=True)
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_id)))
            yield connection

    def rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Return the rows of a query in a transaction of its own."""

        def read() -> list[dict[str, Any]]:
            with self.read() as connection:
                return [dict(fields) for fields in connection.execute(query).mappings()]

        return self.run(read)

    def run(self, work: Callable[[], Result]) -> Result:
        """Run one transaction, and run it again if its connection is lost. Raises LedgerError for the database's errors."""
        try:
            return retry(work, passes=self._passes, pauses=doubling(0.5, ATTEMPTS))
        except IntegrityError as error:
            raise LedgerError(
                f"the ledger at {self.address} was written without its lock by another program: run again ({error.orig})"
            ) from error
        except SQLAlchemyError as error:
            why = _first_line(error.orig if isinstance(error, DBAPIError) else error)
            raise LedgerError(f"the ledger at {self.address} failed: {why}") from error

    def _passes(self, error: Exception) -> bool:
        """Return whether the connection was lost, or cannot be made at the moment."""
        if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
            return False
        lost = error.connection_invalidated or self._engine.dialect.is_disconnect(error.orig, None, None)  # type: ignore[arg-type]
        return lost or _starting(error)


@lru_cache(maxsize=8)
def _engine(url: str) -> sa.Engine:
    try:
        address = sa.make_url(with_driver(url))
        if address.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise SettingsError(f"REMINT_LEDGER {address}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
        if address.get_backend_name() == "postgresql":
            return sa.create_engine(address, pool_pre_ping=True)
        if place := sqlite_file(url):
            place.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(address, connect_args={"timeout": BUSY}, poolclass=sa.NullPool)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise SettingsError("REMINT_LEDGER: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE") from None
    except ModuleNotFoundError as error:
        raise SettingsError(f"REMINT_LEDGER: PostgreSQL needs {error.name}: pip install 'psycopg[binary]'") from None

    # The driver begins a transaction only at the first write, too late for a compare-and-swap. So it is begun here
    # (SQLAlchemy, "Serializable isolation, savepoints, transactional DDL" on the SQLite dialect's page).
    @event.listens_for(engine, "connect")
    def _no_implicit_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("remint_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _starting(error: DBAPIError) -> bool:
    """Return whether PostgreSQL cannot be reached at the moment: it refuses, starts or stops (SQLSTATE classes 08 and 57P)."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return (
        state.startswith(("08", "57P"))
        or "connection failed" in str(error.orig)
        or "connection refused" in str(error.orig).lower()
    )


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
