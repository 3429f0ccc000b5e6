"""Reader of a Parquet file, with limits on what it unpacks to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from remint.data import columns
from remint.errors import DataError

MOST_VALUES = 1 << 28  # 2 GiB in double precision
MOST_BYTES = 2 << 30  # of the decoded text
ROWS = 1 << 16  # in one batch


def read(path: Path) -> pa.Table:
    """Read a Parquet file. Raises DataError if it is none, or too large once unpacked."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, width = file.metadata.num_rows, file.metadata.num_columns
            if rows * width > MOST_VALUES:
                raise DataError(
                    f"{path} holds {rows:,} rows of {width} columns, more than {MOST_VALUES:,} values: use fewer rows or columns"
                )
            _check_unpacked_size(path, file)
            return file.read()
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise DataError(f"{path} is not a Parquet table, or is damaged: {_one_line(error)}") from error
    except OSError as error:  # Arrow's errors have no errno; errors of the disk have one
        if error.errno is not None:
            raise
        raise DataError(f"{path} is not a Parquet table, or is damaged: {_one_line(error)}") from error


def _check_unpacked_size(path: Path, file: pyarrow.parquet.ParquetFile) -> None:
    """Raise DataError if the data are too large once decompressed, or once dictionary texts are repeated for each row."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    total = sum(group.total_byte_size for group in groups)
    if total > MOST_BYTES:
        raise DataError(f"{path} unpacks to {total >> 20:,} MiB, more than {MOST_BYTES >> 20:,}: use fewer rows")
    texts = [field.name for field in file.schema_arrow if columns.is_text_type(field.type)]
    if not texts:
        return
    total = 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as packed:
        for batch in packed.iter_batches(ROWS, columns=texts):
            total += sum(_expanded_bytes(batch.column(name)) for name in texts)
            if total > MOST_BYTES:
                raise DataError(f"{path} holds more than {MOST_BYTES >> 20:,} MiB of text: drop its longest columns")


def _expanded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column's texts, counting every occurrence of each."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    length_K = pyarrow.compute.binary_length(column.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    code_N = column.indices.drop_null().to_numpy(zero_copy_only=False)
    return int(length_K[code_N].sum())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
