"""Copy of MLflow's whole database to another one: every run, model, version, tag and alias as it is, in one transaction.

MLflow itself has no such copy: `mlflow db` migrates a database in place, and mlflow-export-import makes new runs and new
versions over the API, with other ids, numbers and times. Only addresses of files change here, by their root.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from remint.errors import SettingsError, TrackingError, UserError
from remint.runtime.addresses import sqlite_address, sqlite_file, with_driver, without_user
from remint.stores import tables
from remint.stores.mlflow.door import client, door

if TYPE_CHECKING:
    import sqlalchemy as sa

ADDRESSES = {  # columns that hold the address of a file or folder
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
MADE_WITH_THE_TABLES = ("experiments", "workspaces")  # tables of which MLflow makes one row by itself


def check_database(uri: str) -> None:
    """Raise SettingsError if the address is that of a server."""
    if not uri.startswith(("sqlite", "postgresql")):
        raise SettingsError("MLFLOW_TRACKING_URI: a state is copied between databases: set it to that of the server's database")


def locations(uri: str, lock: Path) -> dict[str, tuple[str, list[str]]]:
    """Return the address of the files of each experiment that has runs, by its id, with the ids of its runs."""
    import sqlalchemy as sa

    with door("list runs"), _opened(uri, lock) as (connection, known):
        experiments, runs = known["experiments"], known["runs"]
        found = connection.execute(
            sa.select(experiments.c.experiment_id, experiments.c.artifact_location, runs.c.run_uuid)
            .join(runs, runs.c.experiment_id == experiments.c.experiment_id)
            .order_by(experiments.c.experiment_id, runs.c.run_uuid)
        )
        by_experiment: dict[str, tuple[str, list[str]]] = {}
        for number, location, run in found:
            by_experiment.setdefault(str(number), (location, []))[1].append(run)
        return by_experiment


def has_copy(old_uri: str, new_uri: str, lock: Path, roots: Mapping[str, str]) -> bool:
    """Return whether the new database has exactly the rows of the old one; False if it is new.

    ``roots``: new addresses of folders by their old ones. Raises UserError if it has other rows.
    """
    with door("compare two databases"), _opened(old_uri, lock) as (old, known), _opened(new_uri, lock) as (new, _):
        return _has_copy(old, new, list(known.values()), new_uri, roots)


def snapshot(uri: str, to: Path, lock: Path) -> None:
    """Write a database to a new SQLite file. One of SQLite is copied as it is, by SQLite itself."""
    place = sqlite_file(uri)
    if place is None:
        copy(uri, sqlite_address(to), lock, {})
        return
    with door("copy its database"), closing(sqlite3.connect(place)) as old, closing(sqlite3.connect(to)) as new:
        old.backup(new)


def copy(old_uri: str, new_uri: str, lock: Path, roots: Mapping[str, str]) -> int:
    """Copy all rows to a new database, all or none. Return their number; 0 if they are there. Raises as ``has_copy``."""
    with door("copy its database"), _opened(old_uri, lock) as (old, known), _opened(new_uri, lock) as (new, _):
        ordered = list(known.values())
        if _has_copy(old, new, ordered, new_uri, roots):
            return 0
        for name in reversed(MADE_WITH_THE_TABLES):
            new.execute(known[name].delete())
        copied = tables.copy(old, new, ordered, _moving(roots))
        new.commit()
        return copied


def _has_copy(old: sa.Connection, new: sa.Connection, ordered: Sequence[sa.Table], uri: str, roots: Mapping[str, str]) -> bool:
    import sqlalchemy as sa

    used = [
        table.name
        for table in ordered
        if new.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() > (table.name in MADE_WITH_THE_TABLES)
    ]
    return bool(used) and tables.has_copy(old, new, ordered, f"MLflow's database {without_user(uri)}", _moving(roots))


def _moving(roots: Mapping[str, str]) -> tables.Change:
    """Return the change of a row whose addresses are below one of the old roots."""
    longest_first = sorted(roots, key=len, reverse=True)

    def moved(address: str | None) -> str | None:
        root = next((each for each in longest_first if address == each or (address or "").startswith(f"{each}/")), None)
        return roots[root] + address[len(root) :] if address is not None and root is not None else address

    def change(table: str, row: tables.Row) -> tables.Row:
        return {**row, **{name: moved(row[name]) for name in ADDRESSES.get(table, ())}}

    return change


@contextmanager
def _opened(uri: str, lock: Path) -> Iterator[tuple[sa.Connection, dict[str, sa.Table]]]:
    """Yield a transaction of a database, which is made if it is missing, and MLflow's tables in it, parents first.

    Raises UserError if it has a table that this MLflow does not know, TrackingError if another MLflow wrote it.
    """
    import sqlalchemy as sa
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _verify_schema

    client(uri, lock)  # makes it
    engine = sa.create_engine(with_driver(uri), poolclass=sa.NullPool)
    try:
        _verify_schema(engine)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise TrackingError(f"{without_user(uri)} is of another MLflow: run mlflow db upgrade on it first") from error
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # one snapshot of all tables; the driver begins at the first write only
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        known = {table.name: table for table in Base.metadata.sorted_tables}
        for name in set(sa.inspect(connection).get_table_names()) - set(known) - {"alembic_version"}:
            if connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one():
                raise UserError(f"{without_user(uri)} has the table {name}, which is not of MLflow: nothing was written")
        yield connection, known
