"""Columns of a table: their kind, their fitness for a model, and their values as numbers.

A column is numeric or categorical. Its values are float64: the numbers themselves or the indices of the categories, and
NaN for a missing value (an empty cell, a null, NaN). ``standardise`` returns the form that models receive.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from remint.data.written_numbers import LARGEST_EXACT, PLAIN, are_marked
from remint.records import Column

MOST_CATEGORIES = 256
FEW_ROWS = 20  # in so few rows, all-different values do not show an identifier
FEW_CATEGORIES = 3  # so few categories may mix numbers and text (1, 2, other)
MOST_EXAMPLES = 3  # examples in a message
IDENTIFIER = re.compile(r"(?i:(?:^|[_\-. ])(?:id|ids|uuid|guid|pk|rowid))$|[a-z](?:Id|ID|Uuid|UUID|Guid|GUID)$")
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")

Array = np.ndarray[Any, Any]


class UnusableColumn(Exception):
    """Reason why a column cannot be used, as the rest of a sentence that begins with its name."""


def learn_column(
    name: str, column: pa.ChunkedArray, *, categorical: bool = False, numeric: bool = False, gapped: bool = False
) -> Column:
    """Learn a column's description from its values. Raises UnusableColumn for identifiers, constants, dates and the like.

    ``categorical``, ``numeric``: its kind is stated, so values that look like another kind are no reason against it.
    ``gapped``: values were missing in rows that were dropped.
    """
    if categorical or is_text(column):
        return _learn_categories(name, column, categorical)
    return _learn_numeric(name, column, numeric, gapped)


def type_name(kind: pa.DataType) -> str:
    """Return Arrow's name of a type that drawn rows get back; "" for text, double precision and all that is read as these."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    restored = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind) or kind == pa.float32()
    return str(kind) if restored else ""


def column_values(column: pa.ChunkedArray, known: Column) -> Array:
    """Return the values of a known column, float64 (N,). Raises UnusableColumn if it no longer fits its description."""
    if known.numeric:
        if is_text(column):
            raise UnusableColumn(f"was numeric, now contains text such as {_examples(non_numeric(as_categories(column)[1]))}")
        x_N = as_numbers(column)
        if np.isinf(x_N).any():
            raise UnusableColumn(f"has {int(np.isinf(x_N).sum())} infinite values")
        if known.whole and len(fractions := _fractions(x_N)):
            raise UnusableColumn(f"held whole numbers, now contains {fractions[0]:g}")
        if not np.isfinite(standardise(x_N[:, None], (known,))[~np.isnan(x_N)]).all():
            raise UnusableColumn(
                f"has values up to {np.nanmax(np.abs(x_N)):.3g}, too far from its mean in the schema ({known.mean:.3g})"
            )
    else:
        code_N, names = as_categories(column)
        new = [name for name in names if name not in known.categories]
        if new:
            raise UnusableColumn(f"has {len(new)} new value{'s' * (len(new) > 1)}: {_examples(new)}")
        place = np.array([known.categories.index(name) for name in names], dtype=np.float64)
        x_N = np.full(len(code_N), np.nan)
        x_N[code_N >= 0] = place[code_N[code_N >= 0]]
    missing = int(np.isnan(x_N).sum())
    if missing and not known.missing:
        raise UnusableColumn(f"has {missing} missing values of {len(x_N)}; at the first import it had none")
    return x_N


def standardise(x_ND: Array, columns: tuple[Column, ...]) -> Array:
    """Return float32 (N, D): (x - mean) / scale of numeric columns, indices of categories unchanged."""
    mean_D, scale_D = (np.array([getattr(column, key) for column in columns]) for key in ("mean", "scale"))
    with np.errstate(over="ignore"):
        standard_ND: Array = ((x_ND - mean_D) / scale_D).astype(np.float32)
    return standard_ND


def check_type(column: pa.ChunkedArray) -> None:
    """Raise UnusableColumn if the type is neither number nor text."""
    kind = column.type
    if pa.types.is_duration(kind) or pa.types.is_interval(kind):
        raise UnusableColumn(f"contains durations ({kind}): convert them to numbers (seconds), or drop it")
    if pa.types.is_temporal(kind):
        raise UnusableColumn(f"contains dates or times ({kind}): add it to numeric to read them as days or seconds, or drop it")
    if not (is_number(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind) or _is_string(kind)):
        raise UnusableColumn(f"has type {kind}, neither number nor text: flatten it into columns, or drop it")


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_text(column: pa.ChunkedArray) -> bool:
    return bool(_is_string(column.type) or pa.types.is_boolean(column.type))


def is_text_type(kind: pa.DataType) -> bool:
    """Return whether values of this type (of a dictionary: its values) have variable length."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_string(kind) or bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_missing(column: pa.ChunkedArray) -> Array:
    """Return a mask of the missing values, bool (N,)."""
    return as_categories(column)[0] < 0 if is_text(column) else np.isnan(as_numbers(column))


def as_numbers(column: pa.ChunkedArray) -> Array:
    """Return the values as float64 (N,), NaN where one is missing."""
    return np.array(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def as_categories(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Return each value's index among the distinct values, int64 (N,), -1 where it is missing; and these in order.

    Whole numbers are sorted as numbers and written as integers (3, not 3.0), so that CSV and Parquet agree.
    """
    if pa.types.is_floating(column.type):
        column = _as_integers(column)
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    try:
        names = encoded.dictionary.to_pylist()
    except UnicodeDecodeError as error:
        raise UnusableColumn("contains text that is not UTF-8: save the file as UTF-8") from error
    code_N = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    ordered = sorted((name for name in names if name), key=_sort_key(names))
    place = {name: index for index, name in enumerate(ordered)} | {"": -1}
    lookup = np.array([*(place[name] for name in names), -1], dtype=np.int64)  # the last one is for code -1
    return lookup[code_N], ordered


def non_numeric(names: list[str]) -> list[str]:
    """Return the names that are not decimal numbers."""
    return [name for name in names if not re.fullmatch(PLAIN, name)]


def _as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whole floats as integers (pandas turns integers into floats if one is missing)."""
    x_N = as_numbers(column)
    if len(fractions := _fractions(x_N)):
        raise UnusableColumn(f"must contain categories, but contains {fractions[0]:g}: use whole numbers or text")
    return pa.chunked_array([pa.array(np.nan_to_num(x_N).astype(np.int64), mask=np.isnan(x_N))])


def _fractions(x_N: Array) -> Array:
    """Return the values that are no whole numbers; a missing value is none of them."""
    fractions: Array = x_N[(x_N != np.floor(x_N)) & ~np.isnan(x_N)]
    return fractions


def _sort_key(names: list[str | None]) -> Any:
    whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in names if name)
    return (lambda name: (int(name), name)) if whole else (lambda name: name)


def _learn_categories(name: str, column: pa.ChunkedArray, declared: bool) -> Column:
    code_N, names = as_categories(column)
    present = int((code_N >= 0).sum())
    if len(names) < 2:
        raise UnusableColumn("has no values" if not names else f"has the same value in every row ({names[0]!r})")
    dates = [text for text in names if DATE.fullmatch(text)]
    if len(dates) > len(names) / 2 and not declared:
        raise UnusableColumn(
            f"contains dates such as {dates[0]!r}: convert them to numbers (days since a date, hour, weekday), "
            "add it to categorical, or drop it"
        )
    others = non_numeric(names)
    if not declared and are_marked(names):
        raise UnusableColumn(f"contains numbers written as {_examples(others)}: add it to numeric, or to categorical")
    if not declared and 0 < len(others) <= max(1, len(names) // 10) and len(names) > FEW_CATEGORIES:
        raise UnusableColumn(
            f"contains numbers and text such as {_examples(others)}: "
            "name the cells that are missing values in placeholders, or add it to categorical"
        )
    if not others and len(names) > MOST_CATEGORIES and not declared:
        raise UnusableColumn(f"contains {len(names)} different numbers as text: add it to numeric, or drop it")
    if present > FEW_ROWS and len(names) > present / 2 and not declared:
        raise UnusableColumn(f"looks like an identifier or free text ({len(names)} different values in {present} rows)")
    if len(names) > MOST_CATEGORIES:
        raise UnusableColumn(f"has {len(names)} categories, more than {MOST_CATEGORIES}: merge the rare ones, or drop it")
    return Column(name=name, categories=tuple(names), missing=present < len(code_N), absent=1 - present / len(code_N))


def _learn_numeric(name: str, column: pa.ChunkedArray, declared: bool, gapped: bool) -> Column:
    x_N = as_numbers(column)
    present_N = x_N[~np.isnan(x_N)]
    if not len(present_N):
        raise UnusableColumn("has no values")
    if np.isinf(present_N).any():
        raise UnusableColumn(f"has {int(np.isinf(present_N).sum())} infinite values: make these cells empty, or drop it")
    constant, integers = present_N.min() == present_N.max(), pa.types.is_integer(column.type)
    whole = not len(_fractions(present_N))
    if whole:
        if IDENTIFIER.search(name) and not declared:
            raise UnusableColumn("is named like an identifier and contains whole numbers: add it to categorical, or drop it")
        if np.abs(present_N).max() > LARGEST_EXACT and (integers or constant):  # beyond 2^64, CSV gives floats, all equal
            raise UnusableColumn(
                "contains integers beyond 2^53, which double precision cannot distinguish: it looks like an identifier"
            )
    if constant:
        raise UnusableColumn(f"has the same value in every row ({present_N[0]:g})")
    if integers and not declared and _counts_rows(present_N):
        raise UnusableColumn(
            "looks like an identifier (integers that count the rows; write 1.0, 2.0, .. if they are measurements)"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(present_N.mean()), float(present_N.std())
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):
        raise UnusableColumn(
            f"has values up to {np.abs(present_N).max():.3g}, whose standard deviation cannot be computed: rescale it, or drop it"
        )
    missing = len(present_N) < len(x_N)
    # pandas turns whole numbers into floats where one is missing
    whole = whole and (integers or missing or gapped) and np.abs(present_N).max() <= LARGEST_EXACT
    least, most = (int(present_N.min()), int(present_N.max())) if whole else (None, None)
    absent = 1 - len(present_N) / len(x_N)
    return Column(name=name, mean=mean, scale=scale, missing=missing, absent=absent, least=least, most=most)


def _counts_rows(present_N: Array) -> bool:
    """Return whether integers rise or fall in each row by small steps. Sorted measurements repeat or lie far apart."""
    step = np.diff(present_N)
    dense = np.abs(present_N[-1] - present_N[0]) < 10 * len(present_N)
    return bool(len(present_N) > FEW_ROWS and dense and ((step > 0).all() or (step < 0).all()))


def _examples(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:MOST_EXAMPLES]) + (", .." if len(names) > MOST_EXAMPLES else "")


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
