"""Tables with their gaps filled, in the form of the input: every other cell, line and type stays as it was, to the byte.

Shapes: N rows of the input, M rows of one part, G of them with gaps, D columns.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from remint.data import csv_tables, rows
from remint.errors import DataError
from remint.records import DataSpec

if TYPE_CHECKING:
    import pandas as pd

    from remint.serving.imputation.chains import Part
    from remint.serving.model import ServedModel

ROWS = 4_096  # of a Parquet file at a time

Array = np.ndarray[Any, Any]
Fills = Iterator[dict[str, Any]]  # of each row in order: the values of its gaps, by column


def originals(spec: DataSpec, x_GD: Array) -> dict[str, list[Any]]:
    """Return rows in original units and types, by column."""
    table = rows.to_table(spec, x_GD)
    return {name: table[name].to_pylist() for name in table.column_names}


def fills(spec: DataSpec, parts: Iterable[Part]) -> Fills:
    """Yield the filled cells of each row."""
    for part in parts:
        values = originals(spec, part.x_MX[part.at_G])
        of_row = {int(place): g for g, place in enumerate(part.at_G)}
        for place, missing_D in enumerate(part.missing_MX):
            columns = [spec.columns[d].name for d in np.flatnonzero(missing_D)]
            yield {name: values[name][of_row[place]] for name in columns}


def fill(served: ServedModel, data: Any, row_N: Array | None, parts: list[Part]) -> Any:
    """Return the input with its gaps filled: an Arrow table as one, all others as a DataFrame. ``row_N``: the rows to keep."""
    import pandas as pd

    spec = served.spec
    if isinstance(data, pa.Table):
        return _fill_arrow(spec, data if row_N is None else data.take(pa.array(row_N)), fills(spec, parts))
    if isinstance(data, str | Path):
        if not Path(data).is_file():
            return served.in_source_form(np.concatenate([part.x_MX for part in parts]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"filled{Path(data).suffix.lower()}"
            write(Path(data), path, spec, row_N, fills(spec, parts))
            return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, sep=csv_tables.dialect(path)[1])
    frame = data if hasattr(data, "columns") else pd.DataFrame(np.asarray(data), columns=[each.name for each in spec.columns])
    return _fill_frame(frame.copy() if row_N is None else frame.iloc[row_N].copy(), fills(spec, parts))


def write(source: Path, target: Path, spec: DataSpec, row_N: Array | None, filled: Fills) -> None:
    """Write a .csv or .parquet file with its gaps filled, in parts, and without the rows that were set aside."""
    keep = None if row_N is None else {*row_N.tolist()}
    if target.suffix == ".parquet":
        _write_parquet(source, target, spec, keep, filled)
    else:
        _write_csv(source, target, spec, keep, filled)


def _fill_frame(frame: pd.DataFrame, filled: Fills) -> pd.DataFrame:
    import pandas as pd

    cells: dict[str, dict[int, Any]] = {}
    for place, row in enumerate(filled):
        for name, value in row.items():
            cells.setdefault(name, {})[place] = value
    for name, of_row in cells.items():
        column, places, values = frame[name], [*of_row], [*of_row.values()]
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.cat.add_categories([each for each in dict.fromkeys(values) if each not in column.cat.categories])
        elif column.isna().all():
            column = column.astype(object)
        elif pd.api.types.is_integer_dtype(column):
            values = [round(value) for value in values]
        elif any(isinstance(value, str) for value in column):  # numbers as text
            values = [str(value) for value in values]
        column = column.copy()
        try:
            column.iloc[places] = values
        except (TypeError, ValueError, OverflowError) as error:
            raise _too_narrow(name, column.dtype, values) from error
        frame[name] = column.infer_objects()
    return frame


def _fill_arrow(spec: DataSpec, table: pa.Table, filled: Fills) -> pa.Table:
    types = rows.to_table(spec, np.zeros((1, len(spec.columns)), np.float32)).schema
    cells = [next(filled) for _ in range(table.num_rows)]
    for name in types.names:
        gap_N = pa.array([name in row for row in cells], pa.bool_())
        column = table[name]
        kind = types.field(name).type if pa.types.is_null(column.type) else column.type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        values = pa.array([row.get(name) for row in cells], types.field(name).type)
        if pa.types.is_integer(plain) and pa.types.is_floating(values.type):
            values = pyarrow.compute.round(values)
        try:
            values = values.cast(plain, safe=pa.types.is_integer(plain))
        except pa.ArrowInvalid as error:
            raise _too_narrow(name, plain, values.drop_null().to_pylist()) from error
        merged = pyarrow.compute.if_else(gap_N, values, column.cast(plain)).cast(kind)
        table = table.set_column(table.column_names.index(name), table.field(name).with_type(kind), merged)
    return table


def _too_narrow(name: str, kind: Any, values: list[Any]) -> DataError:
    return DataError(f"column '{name}' has type {kind}, which cannot hold all filled values, such as {max(values)}: widen it")


def _write_parquet(source: Path, target: Path, spec: DataSpec, keep: set[int] | None, filled: Fills) -> None:
    at = 0

    def parts() -> Iterator[pa.Table]:
        nonlocal at
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(ROWS):
                table, first = pa.Table.from_batches([batch]), at
                at += table.num_rows
                if keep is not None:
                    table = table.take(pa.array([place for place in range(table.num_rows) if first + place in keep], pa.int64()))
                yield _fill_arrow(spec, table, filled)

    rows.write_tables(target, parts())


def _write_csv(source: Path, target: Path, spec: DataSpec, keep: set[int] | None, filled: Fills) -> None:
    """Copy each line as it is; only a row with gaps is written again, from the text of its other cells."""
    encoding, separator = csv_tables.dialect(source)
    encoding = _with_byte_order(source) if encoding == "utf-16" else encoding
    truth = {column.name: column.truth for column in spec.columns}
    comma = separator == ";" and _has_decimal_commas(source, encoding, {column.name for column in spec.columns if column.numeric})
    with source.open(encoding=encoding, newline="") as stream, target.open("w", encoding=encoding, newline="") as out:
        records = _records(stream, separator)
        line, header = next(records)
        out.write(line)
        place = {name.removeprefix("\ufeff"): at for at, name in enumerate(header)}
        number = 0
        for line, cells in records:
            if cells:
                number += 1
                if keep is not None and number - 1 not in keep:
                    continue
                row = next(filled)
                for name, value in row.items():
                    cells[place[name]] = _text(value, truth[name], comma)
                if row:
                    ending = line[len(line.rstrip("\r\n")) :] or "\n"
                    csv.writer(out, delimiter=separator, lineterminator=ending).writerow(cells)
                    continue
            out.write(line)


def _records(stream: Iterable[str], separator: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of each record as they are, and its cells; an empty line has none."""
    lines: list[str] = []

    def remembered() -> Iterator[str]:
        for line in stream:
            lines.append(line)
            yield line

    for cells in csv.reader(remembered(), delimiter=separator):
        yield "".join(lines), cells
        lines.clear()


def _text(value: Any, truth: tuple[str, str], comma: bool) -> str:
    if isinstance(value, bool):
        return truth[value]
    return str(value).replace(".", ",") if comma and isinstance(value, float) else str(value)


def _has_decimal_commas(path: Path, encoding: str, numeric: set[str]) -> bool:
    with path.open(encoding=encoding, newline="") as stream:
        reader = csv.reader(stream, delimiter=";")
        at = [place for place, name in enumerate(next(reader)) if name.removeprefix("\ufeff") in numeric]
        return any(
            "," in cells[place] and re.match(csv_tables.DECIMAL_COMMA, cells[place]) for cells in reader if cells for place in at
        )


def _with_byte_order(path: Path) -> str:
    """Return the encoding that keeps the mark of the byte order as the first character."""
    with path.open("rb") as stream:
        return "utf-16-le" if stream.read(2) == b"\xff\xfe" else "utf-16-be"
