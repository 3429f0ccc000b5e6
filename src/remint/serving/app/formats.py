"""Bodies of requests and answers: JSON, .npy, PNG and Parquet. CSV is a body only.

A body is a person's input: what it holds is read and checked as any input is (serving/inputs.py), and refused in one line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from remint.data import numpy_files
from remint.data.blocks import Spool
from remint.errors import DataError, SettingsError
from remint.evaluation.drawing import tile
from remint.runtime import scratch
from remint.serving.model import ServedModel

JSON, NPY, PNG, PARQUET = "application/json", "application/x-npy", "image/png", "application/vnd.apache.parquet"
CSV = "text/csv"
FILES = {NPY: ".npy", PNG: ".png", PARQUET: ".parquet", CSV: ".csv"}

Array = np.ndarray[Any, Any]


def examples(content_type: str, body: bytes, asked: Any, served: ServedModel, read: Callable[[Any], Any]) -> Any:
    """Call ``read`` with the examples of a request: a file in the body, or ``asked.x`` or ``asked.rows`` of JSON."""
    if content_type in FILES:
        with scratch.folder() as folder:
            path = folder / f"body{FILES[content_type]}"
            path.write_bytes(body)
            try:
                return read(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), "the body")) from error
    if served.spec.is_table:
        if asked.rows is None:
            raise SettingsError('expected {"rows": [{column: value, ..}, ..]}, an .npy file of numbers, or a Parquet file')
        if not asked.rows:
            raise DataError("there are no rows")
        # A row may have columns that no other has. Only those of the model are made: all of them may be a billion cells.
        given, label = {name for row in asked.rows for name in row}, served.spec.label
        known = [column.name for column in (*served.spec.columns, *([label] if label else [])) if column.name in given]
        return read(pd.DataFrame(asked.rows, columns=known))
    if asked.x is None:
        raise SettingsError('expected {"x": [image, ..]} with images as nested lists (C x H x W), an .npy file, or a PNG image')
    return read(numbers(asked.x, "x"))


def numbers(given: Any, name: str) -> Array:
    """Return nested lists as an array. Raises DataError if they are none."""
    try:
        found = np.asarray(given)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is no array: its lists have different lengths") from error
    if found.dtype.kind not in "buif":
        raise DataError(f"{name} is no array of numbers")
    return found


def latents(path: Path) -> Array:
    """Return the array of a .npy file. Raises DataError if it holds no numbers."""
    with Spool(path.parent) as spool:
        x = numpy_files.read_npy(path, spool).x
        if x.dtype.kind not in "buif" or 0 in (x.shape or (0,)):
            raise DataError(f"{path} holds no numbers")
        return np.concatenate([*x])


def row_count(path: Path) -> int:
    """Return the rows that a Parquet file claims to have; 0 if it is damaged, which its reader will say."""
    with suppress(pa.ArrowException, OSError):
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    return 0


def json_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; {} for an empty one. Raises DataError if it is none."""
    try:
        found = json.loads((body or b"{}").decode())
        if b"\\ud" in body.lower():  # half of a surrogate pair, which is no character, could be in no answer
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError("the body is not a JSON object")
    return found


def encode(values: Any, accept: str, served: ServedModel) -> tuple[str, bytes]:
    """Return content type and bytes of an answer that is a file. Raises SettingsError if such values have no such file."""
    stream = io.BytesIO()
    if accept == PARQUET and isinstance(values, pd.DataFrame):
        pyarrow.parquet.write_table(pa.Table.from_pandas(values, preserve_index=False), stream)
    elif accept == NPY and isinstance(values, np.ndarray):
        np.save(stream, values, allow_pickle=False)
    elif accept == PNG and isinstance(values, np.ndarray) and values.ndim == 4 and values.shape[1] in (1, 3, 4):
        from PIL import Image

        sheet = tile(values, served.spec.levels, max(1, int(np.ceil(np.sqrt(len(values))))))
        Image.fromarray(np.rint(sheet * 255).astype(np.uint8)).save(stream, "PNG")
    else:
        raise SettingsError(f"the answer cannot be {accept}: ask for application/json")
    return accept, stream.getvalue()


def plain(values: Any) -> Any:
    """Return values as JSON has them: a table as rows, a missing or infinite number as null."""
    if isinstance(values, pd.DataFrame):
        rows = pa.Table.from_pandas(values, preserve_index=False).to_pylist()  # each number with all its digits
        return [
            {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()} for row in rows
        ]
    array = np.asarray(values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        missing, array = ~np.isfinite(array), array.astype(object)
        array[missing] = None
    return array.tolist()
