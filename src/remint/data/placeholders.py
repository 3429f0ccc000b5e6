"""Cells of text that stand for a missing value: one rule for CSV and Parquet, for numbers and text.

A category of the schema is never one. The metadata of a column name those that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute

from remint.records import DataSpec
from remint.settings.dataset import DatasetSettings

PLACEHOLDERS = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "-", "?")
HELD = b"placeholders"  # key of the metadata


def missing_cells(settings: DatasetSettings, known: DataSpec | None) -> list[str]:
    """Return the cells that are missing values; the empty one is first. ``known``: the spec in the schema."""
    categories = {*known.class_names, *(each for column in known.columns for each in column.categories)} if known else set()
    words = PLACEHOLDERS if settings.placeholders is None else settings.placeholders
    return ["", *(word for word in words if word and word not in categories)]


def held(column: pa.ChunkedArray | pa.Array, missing: Sequence[str]) -> list[str]:
    """Return the placeholders that a column of text holds, in the order of ``missing``."""
    if pa.types.is_dictionary(column.type):  # of one chunk; its texts may be too large to be repeated for each row
        column = column.dictionary.take(column.indices.drop_null().unique())
    found = set(column.filter(_are(column, missing[1:])).unique().to_pylist())
    return [word for word in missing if word in found]


def noted(field: pa.Field, words: Sequence[str]) -> pa.Field:
    """Return a field whose metadata name the placeholders of its column."""
    return field.with_metadata({**(field.metadata or {}), HELD: ", ".join(words)}) if words else field


def to_null(column: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Return a column of text, or of categories that are text, without its placeholders."""
    column = column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column  # has few kernels in Arrow
    return pyarrow.compute.if_else(_are(column, missing[1:]), pa.scalar(None, column.type), column)


def _are(column: pa.ChunkedArray | pa.Array, words: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    text = column.cast(pa.large_string())
    return pyarrow.compute.is_in(text, value_set=pa.array(words, pa.large_string()))
