"""Decisions about the columns of a table that its values alone do not show, each with its reason.

The index of a saved frame is left out. A category of pandas stays one, also if it holds whole numbers. ``numeric:`` and
``categorical:`` of params.yaml override each decision.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute

from remint.data import columns, written_numbers
from remint.data.lazy import LazyTable
from remint.data.placeholders import HELD

INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0(\.\d+)*|index|level_\d+")


@dataclass(frozen=True)
class Reason:
    """One decision: the column is left out, or is a category."""

    text: str
    left_out: bool = False
    categorical: bool = False


def find(table: LazyTable, stated: Collection[str], dividing: Collection[str]) -> dict[str, Reason]:
    """Return the decisions about columns that are not obvious.

    ``stated``: columns that a setting calls a feature, so that only their missing values need a decision; ``dividing``: those
    that the split is made by.
    """
    indices, categories = _pandas(table)
    found = {}
    for name in table.column_names:
        reason = None if name in stated else _reason(name, table[name], dividing, indices, categories)
        words = (table.schema.field(name).metadata or {}).get(HELD, b"").decode()
        if words and not (reason and reason.left_out):
            gap = f"missing where a cell holds {words} (setting placeholders)"
            reason = replace(reason, text=f"{reason.text}; {gap}") if reason else Reason(gap)
        if reason:
            found[name] = reason
    return found


def _reason(
    name: str, column: pa.ChunkedArray, dividing: Collection[str], indices: Collection[str], categories: Collection[str]
) -> Reason | None:
    if name in dividing:
        return Reason("left out: it divides the splits, and is no measurement", left_out=True)
    if name in indices or (INDEX.fullmatch(name) and _numbers_rows(column)):
        return Reason("left out: the index of the saved frame, and no measurement", left_out=True)
    if name in categories or pa.types.is_dictionary(column.type):
        return Reason("a category, as the file says", categorical=True)
    if columns.is_text(column) and not pa.types.is_boolean(column.type) and written_numbers.are_plain(column):
        codes = written_numbers.has_codes(column)
        return Reason(f"a category: {'codes with leading zeros, not numbers' if codes else 'the file holds its numbers as text'}")
    if _numbers_rows(column) and len(column) > columns.FEW_ROWS:
        least, most = (pyarrow.compute.min_max(column)[key].as_py() for key in ("min", "max"))
        if most - least == len(column) - 1:
            return Reason(f"numbers, and each of {least} .. {most} occurs once: drop it if it numbers the rows")
    return None


def _pandas(table: LazyTable) -> tuple[set[str], set[str]]:
    """Return the columns that pandas saved as an index, and those that it saved as categories. Invalid metadata names none."""
    try:
        metadata = table.schema.pandas_metadata or {}
        indices = {name for name in metadata.get("index_columns", []) if isinstance(name, str)}
        categories = {str(each["name"]) for each in metadata.get("columns", []) if each.get("pandas_type") == "categorical"}
    except (ValueError, TypeError, AttributeError, KeyError):
        return set(), set()
    return indices, categories


def _numbers_rows(column: pa.ChunkedArray) -> bool:
    """Return whether a column holds whole numbers that are all different, as an index does."""
    if not pa.types.is_integer(column.type) or column.null_count:
        return False
    return bool(pyarrow.compute.count_distinct(column).as_py() == len(column))


def parse_numbers(where: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text such as $1,234.50 or 12% as numbers, dates as days since 1970, times as whole seconds since then or midnight.

    Raises DataError, which names a value that is no number.
    """
    kind = column.type
    if pa.types.is_date(kind):
        return column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    if pa.types.is_time(kind):
        return column.cast(pa.time32("s"), safe=False).cast(pa.int32()).cast(pa.int64())
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.int64())
    if not columns.is_text(column):
        return column
    return written_numbers.parse(where, column)
