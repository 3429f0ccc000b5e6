"""Rows that a model draws, in the form of their source: its column order and types, categories by name, original units.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from remint.records import Column, DataSpec

TEMPORAL = ("date", "time")  # beginnings of the names of Arrow's types of dates and times

Array = np.ndarray[Any, Any]


def to_table(spec: DataSpec, x_ND: Array, y_N: Array | None = None) -> pa.Table:
    """Return drawn, standardised rows as a table, with the label's column where classes are given. A NaN becomes a null.

    Whole numbers are within the range of the first import, also those of a family that draws others.
    """
    arrays = [(column.name, _restore(column, x_N)) for column, x_N in zip(spec.columns, x_ND.T, strict=True)]
    if spec.label is not None and y_N is not None:
        arrays.insert(spec.label_at, (spec.label.name, _restore(spec.label, y_N)))
    return pa.table(dict(arrays))


def write(path: Path, tables: pa.Table | Iterable[pa.Table], spec: DataSpec) -> None:
    """Write rows as Parquet or CSV. Numbers in CSV read back to the bit, truth values are as in the source, nulls are empty.

    ``tables``: all rows, or parts of them.
    """
    truth = {column.name: column.truth for column in (*spec.columns, spec.label) if column is not None}
    write_tables(path, [tables] if isinstance(tables, pa.Table) else tables, truth)


def write_tables(path: Path, tables: Iterable[pa.Table], truth: Mapping[str, tuple[str, str]] = {}) -> None:
    """Write tables of the same columns below each other. ``truth``: words of a CSV file for truth values, by column."""
    with ExitStack() as stack:
        writer: Any = None
        for table in tables:
            if path.suffix == ".parquet":
                writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(path, table.schema))
                writer.write_table(table)
                continue
            if writer is None:
                writer = csv.writer(stack.enter_context(path.open("w", newline="")), lineterminator="\n")
                writer.writerow(table.column_names)
            cells = [[_cell(value, truth.get(name)) for value in table[name].to_pylist()] for name in table.column_names]
            writer.writerows(zip(*cells, strict=True))


def text(column: Column, value: float, digits: int) -> str:
    """Return one standardised value as a person reads it: real numbers with so many digits; "" for a missing one."""
    if np.isnan(value):
        return ""
    if column.whole and not column.type.startswith(TEMPORAL):  # not by its type: later data may need a wider one
        return str(round(float(value) * column.scale + column.mean))
    try:
        found = _restore(column, np.array([value]), drawn=False)[0].as_py()
    except (pa.ArrowException, OverflowError, ValueError):  # no date of the calendar
        return f"{float(value) * column.scale + column.mean:.{digits}g}"
    return f"{found:.{digits}g}" if isinstance(found, float) else str(found)


def _cell(value: Any, truth: tuple[str, str] | None) -> Any:
    return truth[value] if truth is not None and isinstance(value, bool) else value


def _restore(column: Column, x_N: Array, *, drawn: bool = True) -> pa.Array:
    """Return the original values of one column, in the source's type."""
    missing_N = np.isnan(x_N)
    if not column.numeric:
        names = pa.array(column.categories, pa.string())
        found = names.take(pa.array(np.where(missing_N, 0, x_N).astype(np.int64), mask=missing_N))
        return found.cast(_type(column.type)) if column.type else found
    number_N = np.where(missing_N, 0.0, x_N).astype(np.float64) * column.scale + column.mean
    if not column.whole:
        return pa.array(number_N, mask=missing_N).cast(_type(column.type or "double"))
    whole_N = np.rint(number_N)
    if drawn:
        whole_N = np.clip(whole_N, column.least, column.most)
    return _from_whole(pa.array(whole_N.astype(np.int64), mask=missing_N), _type(column.type or "int64"))


def _from_whole(whole: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return whole numbers, days or seconds in the source's type: the inverse of decisions.parse_numbers."""
    if pa.types.is_date(kind):
        return whole.cast(pa.int32()).cast(pa.date32()).cast(kind)
    if pa.types.is_time(kind):
        return whole.cast(pa.int32()).cast(pa.time32("s")).cast(kind)
    if pa.types.is_timestamp(kind):
        return whole.cast(pa.timestamp("s", kind.tz)).cast(kind)
    return whole.cast(kind)


def _type(name: str) -> pa.DataType:
    """Return the Arrow type of a name as ``str`` gives it."""
    zoned = re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name)
    return pa.timestamp(*zoned.groups()) if zoned else pa.type_for_alias(name)
