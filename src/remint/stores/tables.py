"""Copy of all rows of some tables from one SQL database to another, in one transaction of the latter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from remint.errors import IntegrityError, UserError
from remint.records import canonical

BATCH = 1000  # rows in one request

Row = dict[str, Any]
Change = Callable[[str, Row], Row]  # the row of a table as the other database gets it


def unchanged(_table: str, row: Row) -> Row:
    return row


def has_copy(old: sa.Connection, new: sa.Connection, tables: Sequence[sa.Table], what: str, change: Change = unchanged) -> bool:
    """Return whether the new database has exactly the old rows; False if it is empty. Raises UserError if it has others."""
    ours = {table.name: _digest(old, table, change) for table in tables}
    theirs = {table.name: _digest(new, table) for table in tables}
    if ours == theirs:
        return True
    held = [name for name, (count, _) in theirs.items() if count]
    if held:
        differs = next(name for name in ours if ours[name] != theirs[name])
        raise UserError(
            f"{what} has other content: its table {differs} has {theirs[differs][0]:,} rows, the state {ours[differs][0]:,}. "
            "Nothing was written: name an empty database"
        )
    return False


def copy(old: sa.Connection, new: sa.Connection, tables: Sequence[sa.Table], change: Change = unchanged) -> int:
    """Copy all rows into empty tables, parents first, and compare them. Return their number."""
    copied = 0
    for table in tables:
        for rows in _batches(old, table):
            new.execute(table.insert(), [change(table.name, row) for row in rows])
            copied += len(rows)
        _continue_numbers(new, table)
        if _digest(new, table) != _digest(old, table, change):
            raise IntegrityError(f"the rows of {table.name} in the new database differ from the old ones: nothing was kept")
    return copied


def _batches(connection: sa.Connection, table: sa.Table) -> Iterator[list[Row]]:
    found = connection.execute(sa.select(table).execution_options(yield_per=BATCH)).mappings()
    for part in found.partitions():
        yield [dict(row) for row in part]


def _digest(connection: sa.Connection, table: sa.Table, change: Change = unchanged) -> tuple[int, int]:
    """Return the number of rows, and the sum of their hashes: databases sort text in different ways."""
    count = total = 0
    for rows in _batches(connection, table):
        for row in rows:
            text = canonical({name: _plain(value) for name, value in change(table.name, row).items()})
            total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
            count += 1
    return count, total % 2**256


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | str | list | dict | None) else repr(value)


def _continue_numbers(connection: sa.Connection, table: sa.Table) -> None:
    """Let PostgreSQL number the next row after the copied ones."""
    column = table.autoincrement_column
    if connection.dialect.name == "postgresql" and column is not None:
        sequence = connection.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name))).scalar()
        last = connection.execute(sa.select(sa.func.max(column))).scalar()
        if sequence is not None and last is not None:
            connection.execute(sa.select(sa.func.setval(sequence, last)))
