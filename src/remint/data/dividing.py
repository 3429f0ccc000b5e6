"""Columns of a table that divide its rows into splits: ``split.group``. They are no features, unless a setting says so.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from remint.data import columns, splits
from remint.data.columns import UnusableColumn
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.recipe import DatasetSettings, did_you_mean

Array = np.ndarray[Any, Any]


def names(settings: DatasetSettings) -> dict[str, str]:
    """Return the dividing columns by their key of ``split:``."""
    return {} if settings.split.group is None else {"group": settings.split.group}


def text_columns(settings: DatasetSettings, known: DataSpec | None) -> set[str]:
    """Return the columns of a CSV file to read as text, so that more data change no group: 007 stays 007 beside 7."""
    return {*names(settings).values()} - {column.name for column in (known.columns if known else ())}


def select(name: str, settings: DatasetSettings, where: str, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the dividing columns by their key. Raises DataError if the table lacks one."""
    for key, column in names(settings).items():
        if column not in table.column_names:
            problem = did_you_mean(f"column '{column}'", column, table.column_names)
            raise DataError(f"params.yaml: datasets.{name}.split.{key}: {where}: {problem}")
    return {key: _as_text_if_time(table[column]) for key, column in names(settings).items()}


def _as_text_if_time(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_temporal(column.type) else column


def arrays(name: str, settings: DatasetSettings, where: str, selected: Mapping[str, pa.ChunkedArray]) -> dict[str, Array]:
    """Return the arrays of a snapshot: ``group``, a hash of each row's group, uint64 (N,).

    Raises DataError if a row has none, or if one group is larger than the training split.
    """
    found = {}
    for key, column in selected.items():
        place = f"params.yaml: datasets.{name}.split.{key}"
        try:
            code_N, texts = columns.as_categories(column)
            missing = int((code_N < 0).sum())
            if missing:
                raise UnusableColumn(f"is missing in {missing} of {len(code_N)} rows: fill it, or set missing: drop_rows")
        except UnusableColumn as reason:
            raise DataError(f"{place}: {where}: column '{names(settings)[key]}' {reason}") from reason
        found[key] = splits.group_words(place, settings.split, [texts[code] for code in code_N])
    return found
