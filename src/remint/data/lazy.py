"""Tables whose columns are read one at a time, so that no more than one is in memory.

Shapes: N rows, B rows of one block, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from remint.data import columns
from remint.data.blocks import Blocks, Spool, check_memory, fill
from remint.errors import DataError

MOST_COLUMNS = 10_000
LONGEST_NAME = 200  # characters
SHARE = 4  # a table that takes at most this part of the memory limit is read at once
COLUMN_BYTES = 112  # of each row, while one column is read, checked and converted; measured, with what Arrow keeps

Array = np.ndarray[Any, Any]


class Columns(Mapping[str, pa.ChunkedArray]):
    """Columns by name. Each access reads the column again."""

    def __init__(self, read: Mapping[str, Callable[[], pa.ChunkedArray]]) -> None:
        self.read = dict(read)

    @classmethod
    def of(cls, columns: Mapping[str, pa.ChunkedArray]) -> Columns:
        """Return columns; those in memory as they are."""
        return columns if isinstance(columns, cls) else cls({name: partial(columns.__getitem__, name) for name in columns})

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)

    def map(self, convert: Callable[[str, pa.ChunkedArray], pa.ChunkedArray], only: Sequence[str] | None = None) -> Columns:
        """Return all columns, or ``only`` some, as ``convert`` returns them."""
        return Columns({name: partial(self._converted, convert, name) for name in (self.read if only is None else only)})

    def _converted(self, convert: Callable[[str, pa.ChunkedArray], pa.ChunkedArray], name: str) -> pa.ChunkedArray:
        return convert(name, self[name])


@dataclass(frozen=True)
class LazyTable:
    """Table with the part of pyarrow's interface that readers use. Each access to a column reads it again."""

    schema: pa.Schema
    num_rows: int
    read: Columns

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.read[name]

    def drop_columns(self, names: Sequence[str]) -> LazyTable:
        schema = pa.schema([field for field in self.schema if field.name not in names], self.schema.metadata)
        return LazyTable(schema, self.num_rows, self.read)


def in_memory(table: pa.Table) -> LazyTable:
    return LazyTable(
        table.schema, table.num_rows, Columns({name: partial(table.__getitem__, name) for name in table.column_names})
    )


def spooled(tables: Iterator[pa.Table], spool: Spool) -> LazyTable:
    """Return tables of the same rows, which are read one after the other, side by side as one. They lie in the spool."""
    fields: list[pa.Field] = []
    read: dict[str, Callable[[], pa.ChunkedArray]] = {}
    rows = 0
    for table in tables:
        file = spool.file()
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        fields, rows = [*fields, *table.schema], table.num_rows
        read |= {name: partial(_spooled_column, file, place) for place, name in enumerate(table.column_names)}
    return LazyTable(pa.schema(fields), rows, Columns(read))


def _spooled_column(file: BinaryIO, place: int) -> pa.ChunkedArray:
    with pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[place])) as reader:
        return reader.read_all().column(0)


def check_names(where: str, table: LazyTable) -> None:
    """Raise DataError if the header is not a valid list of column names."""
    try:
        names = table.column_names
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the column names are not UTF-8: save the file as UTF-8") from error
    check_column_count(where, len(names))
    place: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name.strip():
            raise DataError(f"{where}: column {index + 1} has no name: name it, or remove it (pandas: index=False)")
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise DataError(f"{where}: column {index + 1} has a name that cannot be printed, or is too long: {name[:40]!r}")
        if place.setdefault(name, index) < index:
            raise DataError(f"{where}: two columns are named '{name}': rename one of them")
    if names and all(not columns.non_numeric([name]) for name in names):
        raise DataError(
            f"{where}: the first line holds numbers ({', '.join(names[:3])}, ..): add a line with the column names above it"
        )


def check_column_count(where: str, count: int) -> None:
    if count > MOST_COLUMNS:
        raise DataError(f"{where} has {count:,} columns, more than {MOST_COLUMNS:,}: use fewer columns")


def check_rows(rows: int) -> None:
    """Raise SettingsError if one column of so many rows exceeds the memory limit."""
    check_memory(COLUMN_BYTES * rows, f"one column of {rows:,} rows")


class Matrix:
    """Columns of float64 on disk, one after the other, that are read as rows."""

    def __init__(self, spool: Spool) -> None:
        self.file, self.count, self.rows = spool.file(), 0, 0

    def append(self, x_N: Array) -> None:
        self.file.write(memoryview(cast(Any, np.ascontiguousarray(x_N, dtype=np.float64))).cast("B"))
        self.count, self.rows = self.count + 1, len(x_N)

    def blocks(self) -> Blocks:
        """Return the rows, float64 (N, D)."""
        self.file.flush()

        def read(rows: int) -> Iterator[Array]:
            for at in range(0, self.rows, rows):
                x_DB = np.empty((self.count, min(rows, self.rows - at)))
                for d, x_B in enumerate(x_DB):
                    fill(x_B, self.file, 8 * (d * self.rows + at))
                yield np.ascontiguousarray(x_DB.T)

        return Blocks((self.rows, self.count), np.dtype(np.float64), read, 8 * self.count)
