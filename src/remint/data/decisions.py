"""Decisions about the columns of a table that its values alone do not show, each with its reason.

The index of a saved frame is left out. A category of pandas stays one, also if it holds whole numbers. ``numeric:`` and
``categorical:`` of params.yaml override each decision.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute

from remint.data import columns
from remint.data.lazy import LazyTable
from remint.errors import DataError

INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|index|level_\d+")
NUMBER_SIGNS = r"[\s$€£¥%,_']"  # of prices, shares and thousands


@dataclass(frozen=True)
class Reason:
    """One decision: the column is left out, or is a category."""

    text: str
    left_out: bool = False
    categorical: bool = False


def find(table: LazyTable, stated: Collection[str], dividing: Collection[str]) -> dict[str, Reason]:
    """Return the decisions about the columns that no setting calls a feature.

    ``stated``: the columns that one does, ``dividing``: those that the split is made by.
    """
    indices, categories = _pandas(table)
    found = {}
    for name in table.column_names:
        if name in stated:
            continue
        column = table[name]
        if name in dividing:
            found[name] = Reason("left out: it divides the splits, and is no measurement", left_out=True)
        elif name in indices or (INDEX.fullmatch(name) and _numbers_rows(column)):
            found[name] = Reason("left out: the index of the saved frame, and no measurement", left_out=True)
        elif name in categories or pa.types.is_dictionary(column.type):
            found[name] = Reason("a category, as the file says", categorical=True)
        elif pa.types.is_string(column.type) and _padded(column):
            found[name] = Reason("a category: codes with leading zeros, not numbers", categorical=False)
    return found


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


def _padded(column: pa.ChunkedArray) -> bool:
    whole = pyarrow.compute.match_substring_regex(column, r"^\s*[-+]?[0-9]+\s*$")
    return bool(pyarrow.compute.all(whole).as_py())


def parse_numbers(where: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text such as $1,234.50 or 12% as numbers.

    Dates become days since 1970; times become whole seconds, since then or since midnight. Raises DataError, which names a
    value that is no number.
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
    plain = pyarrow.compute.replace_substring_regex(column.cast(pa.string()), NUMBER_SIGNS, "")
    try:
        return plain.cast(pa.float64())
    except pa.ArrowInvalid as error:
        found = re.search(r"string: (.{1,60}?) as a scalar", str(error))
        raise DataError(f"{where} holds {found[1] if found else 'text'}, which is not a number") from error
