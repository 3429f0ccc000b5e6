"""Reader of a Parquet file, with limits on what it unpacks to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from remint.data import columns, placeholders
from remint.data.blocks import check_memory, memory_limit
from remint.data.lazy import SHARE, Columns, LazyTable, check_rows, in_memory
from remint.errors import DataError

MOST_VALUES = 1 << 28  # 2 GiB in double precision
MOST_BYTES = 2 << 30  # of the decoded text
ROWS = 1 << 16  # in one batch
TEXT_COPIES = 3  # of a column of text, while it is converted


def read(path: Path, missing: Sequence[str] = ("",)) -> LazyTable:
    """Read a Parquet file. The columns of a large one are read one at a time. ``missing``: cells of text that are missing values.

    Raises DataError if it is none, or too large once unpacked. Raises SettingsError if a column exceeds the memory limit.
    """
    with _damage_as_data_error(path), pyarrow.parquet.ParquetFile(path) as file:
        rows, width = file.metadata.num_rows, file.metadata.num_columns
        if rows * width > MOST_VALUES:
            raise DataError(
                f"{path} holds {rows:,} rows of {width} columns, more than {MOST_VALUES:,} values: use fewer rows or columns"
            )
        check_rows(rows)
        text, held = _check_unpacked_size(path, file, missing)
        fields = [placeholders.noted(each, held.get(each.name, [])) for each in file.schema_arrow]
        schema = pa.schema(fields, file.schema_arrow.metadata)

        def convert(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
            return placeholders.to_null(column, missing) if held.get(name) else column

        if 8 * rows * width + text <= memory_limit() // SHARE:
            table = in_memory(file.read())
            return LazyTable(schema, rows, table.read.map(convert))
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            names = []  # the caller refuses two of one name
        read = {name: partial(_column, path, file.metadata, name) for name in names}
        return LazyTable(schema, rows, Columns(read).map(convert))


def _column(path: Path, metadata: pyarrow.parquet.FileMetaData, name: str) -> pa.ChunkedArray:
    with _damage_as_data_error(path), pyarrow.parquet.ParquetFile(path, metadata=metadata) as file:
        return file.read(columns=[name])[name]


@contextmanager
def _damage_as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise DataError(f"{path} is not a Parquet table, or is damaged: {_one_line(error)}") from error
    except OSError as error:  # Arrow's errors have no errno; errors of the disk have one
        if error.errno is not None:
            raise
        raise DataError(f"{path} is not a Parquet table, or is damaged: {_one_line(error)}") from error


def _check_unpacked_size(
    path: Path, file: pyarrow.parquet.ParquetFile, missing: Sequence[str]
) -> tuple[int, dict[str, list[str]]]:
    """Return the bytes of the text, and the placeholders that each column of text holds.

    Raises DataError if the data are too large once decompressed, or once dictionary texts are repeated for each row.
    """
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > MOST_BYTES:
        raise DataError(f"{path} unpacks to {unpacked >> 20:,} MiB, more than {MOST_BYTES >> 20:,}: use fewer rows")
    texts = [field.name for field in file.schema_arrow if columns.is_text_type(field.type)]
    if not texts:
        return 0, {}
    total, held = dict.fromkeys(texts, 0), {name: set[str]() for name in texts}
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as packed:
        for batch in packed.iter_batches(ROWS, columns=texts):
            for name in texts:
                total[name] += _expanded_bytes(batch.column(name))
                if not _is_binary(file.schema_arrow.field(name).type):
                    held[name].update(placeholders.held(batch.column(name), missing))
            if sum(total.values()) > MOST_BYTES:
                raise DataError(f"{path} holds more than {MOST_BYTES >> 20:,} MiB of text: drop its longest columns")
    longest = max(texts, key=lambda name: total[name])
    check_memory(TEXT_COPIES * total[longest], f"the text of column '{longest[:40]}'")
    return sum(total.values()), {name: [word for word in missing if word in held[name]] for name in texts}


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _expanded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column's texts, counting every occurrence of each."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    length_K = pyarrow.compute.binary_length(column.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    code_N = column.indices.drop_null().to_numpy(zero_copy_only=False)
    return int(length_K[code_N].sum())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
