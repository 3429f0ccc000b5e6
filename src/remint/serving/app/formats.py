"""Bodies of requests and answers: JSON, .npy, PNG and Parquet.

A body is a person's input: what it holds is read and checked as any input is (serving/inputs.py), and refused in one line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from remint.errors import DataError, SettingsError
from remint.evaluation.drawing import tile
from remint.runtime import scratch
from remint.serving.model import ServedModel

JSON, NPY, PNG, PARQUET = "application/json", "application/x-npy", "image/png", "application/vnd.apache.parquet"
FILES = {NPY: ".npy", PNG: ".png", PARQUET: ".parquet"}

Array = np.ndarray[Any, Any]


def examples(content_type: str, body: bytes, given: Any, served: ServedModel, read: Callable[[Any], Any]) -> Any:
    """Call ``read`` with the examples of a request: a file in the body, or ``x`` or ``rows`` of JSON (``given``)."""
    if content_type in FILES:
        with scratch.folder() as folder:
            path = folder / f"body{FILES[content_type]}"
            path.write_bytes(body)
            try:
                return read(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), "the body")) from error
    if served.spec.is_table:
        if not isinstance(given.get("rows"), list) or not all(isinstance(row, dict) for row in given["rows"]):
            raise SettingsError('expected {"rows": [{column: value, ..}, ..]}, an .npy file of numbers, or a Parquet file')
        if not given["rows"]:
            raise DataError("there are no rows")
        return read(pd.DataFrame(given["rows"]))
    if "x" not in given:
        raise SettingsError('expected {"x": [image, ..]} with images as nested lists (C x H x W), an .npy file, or a PNG image')
    return read(numbers(given["x"], "x"))


def numbers(given: Any, name: str) -> Array:
    """Return nested lists as an array. Raises DataError if they are none."""
    try:
        found = np.asarray(given)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is no array: its lists have different lengths") from error
    if found.dtype.kind not in "buif":
        raise DataError(f"{name} is no array of numbers")
    return found


def json_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; {} for an empty one. Raises DataError if it is none."""
    try:
        found = json.loads(body or b"{}")
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
