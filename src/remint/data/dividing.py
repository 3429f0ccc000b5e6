"""Columns of a table that divide its rows: ``split.group`` and ``split.time``. They are no features, unless a setting says so.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from remint.data import columns, decisions, splits
from remint.data.columns import UnusableColumn
from remint.data.lazy import LazyTable
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.base import did_you_mean
from remint.settings.dataset import DatasetSettings

DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))  # text without and with a zone

Array = np.ndarray[Any, Any]


def names(settings: DatasetSettings) -> dict[str, str]:
    """Return the dividing columns by their key of ``split:``."""
    named = {"group": settings.split.group, "time": settings.split.time}
    return {key: column for key, column in named.items() if column is not None}


def text_columns(settings: DatasetSettings, known: DataSpec | None) -> set[str]:
    """Return the columns of a CSV file to read as text, so that more data change no group: 007 stays 007 beside 7."""
    group = settings.split.group
    learnt = known is not None and group in {column.name for column in known.columns}
    return set() if group is None or (learnt and group not in settings.numeric) else {group}


def select(name: str, settings: DatasetSettings, where: str, table: LazyTable) -> dict[str, pa.ChunkedArray]:
    """Return the dividing columns by their key: groups as they are, times as ``_times`` returns them.

    Raises DataError if the table lacks one, or if a column of times holds other values.
    """
    selected = {}
    for key, column in names(settings).items():
        if column not in table.column_names:
            problem = did_you_mean(f"column '{column}'", column, table.column_names)
            raise DataError(f"params.yaml: datasets.{name}.split.{key}: {where}: {problem}")
        found = table[column]
        if key == "group":
            selected[key] = found.cast(pa.string()) if pa.types.is_temporal(found.type) else found
            continue
        place = f"params.yaml: datasets.{name}.split.time: {where}: column '{column}'"
        written = column in settings.numeric and columns.is_text(found)  # as $1,234: dates stay dates
        selected[key] = _times(place, decisions.parse_numbers(place, found) if written else found)
        if settings.split.newest_hours and pa.types.is_floating(selected[key].type):
            raise DataError(
                f"{place} holds numbers, and held_out: {settings.split.held_out} is a duration: convert the column to dates, or "
                "give held_out as a share, such as 0.2"
            )
    return selected


def _times(place: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return dates as microseconds since 1970 (UTC), int64, and numbers as float64. Raises DataError for other values."""
    if columns.is_number(column.type):
        return column.cast(pa.float64(), safe=False)
    for kind in DATES:
        try:
            return column.cast(kind, safe=False).cast(pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    odd = next((value for value in column.drop_null().unique() if not _is_date(value)), None)
    found = (
        f"contains {str(odd)[:40]!r}, which is no time" if odd is not None else "has times with and without a zone, or no times"
    )
    raise DataError(f"{place} {found}: write dates as 2024-05-31 or 2024-05-31T12:00:00, or times as numbers")


def _is_date(value: pa.Scalar) -> bool:
    for kind in DATES:
        try:
            value.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return True
    return False


def arrays(name: str, settings: DatasetSettings, where: str, selected: Mapping[str, pa.ChunkedArray]) -> dict[str, Array]:
    """Return the arrays of a snapshot: ``group``, a hash of each row's group, uint64 (N,); ``time``, datetime64 or float64 (N,).

    Raises DataError if a row has none, or if one group is larger than the training split.
    """
    found = {}
    for key, column in selected.items():
        place = f"params.yaml: datasets.{name}.split.{key}"
        try:
            missing = int(columns.is_missing(column).sum())
            if missing:
                raise UnusableColumn(f"is missing in {missing} of {len(column)} rows: fill it, or set missing: drop_rows")
            if key == "time":
                time_N = column.to_numpy()
                if not np.isfinite(time_N).all():
                    raise UnusableColumn(f"has {int((~np.isfinite(time_N)).sum())} infinite values: correct them")
                found[key] = time_N.astype("datetime64[us]") if time_N.dtype == np.int64 else time_N
                continue
            code_N, texts = columns.as_categories(column)
        except UnusableColumn as reason:
            raise DataError(f"{place}: {where}: column '{names(settings)[key]}' {reason}") from reason
        found[key] = splits.group_words(place, settings.split, [texts[code] for code in code_N])
    return found
