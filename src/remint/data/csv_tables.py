"""Reader of a CSV file: encoding, separator and decimal sign as its content shows them, and one rule for missing values.

The metadata of a column of truth values are its words for ``false`` and ``true``.

A cell that holds one of MISSING is missing, in numeric and in text columns alike, unless the schema knows it as a category.
Whole numbers with leading zeros (02139) are codes: their column stays text.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from remint.errors import DataError
from remint.records import DataSpec
from remint.runtime.events import emit

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "-", "?")
SEPARATORS = ";\t|"  # beside the comma
LONGEST_HEADER = 1 << 21  # bytes of the first line that are looked at
ZERO_PADDED = r"^\s*[-+]?0[0-9]+\s*$"
DECIMAL_COMMA = r"^\s*[-+]?[0-9]+(,[0-9]+)?\s*$"


def read(
    path: Path, text: Collection[str], known: DataSpec | None, header: list[str] | None = None, label: str | None = None
) -> pa.Table:
    """Read a CSV file.

    Arguments: ``text`` columns that are read as text, ``known`` the spec in the schema, whose categories are never missing values
    and whose numbers are never codes, ``header`` column names in place of the first line, ``label`` a column whose dates are read
    as text. Raises DataError if it is not a table of UTF-8 text (or UTF-16 with its mark).
    """
    with path.open("rb") as stream:
        first = stream.readline(LONGEST_HEADER)
    encoding = "utf-16" if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf8"
    try:
        line = codecs.getincrementaldecoder(encoding)().decode(first)  # which allows a cut last character
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the column names are not UTF-8: {_recode(path)}") from error
    separator = "," if "," in line else next((mark for mark in SEPARATORS if mark in line), ",")
    categories = {*known.class_names, *(each for column in known.columns for each in column.categories)} if known else set()
    numbers = {column.name for column in known.columns if column.numeric} if known else set()
    missing = [cell for cell in MISSING if cell not in categories]

    def parse(kinds: dict[str, pa.DataType], decimal: str = ".", only: list[str] | None = None) -> pa.Table:
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=header, skip_rows=1 if header else 0, encoding=encoding),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=kinds,
                null_values=missing,
                strings_can_be_null=True,
                decimal_point=decimal,
                include_columns=only or [],
            ),
        )

    try:
        kinds = {name: pa.string() for name in text}
        table = parse(kinds)
        if any(pa.types.is_binary(kind) for kind in table.schema.types):
            raise DataError(f"{path} is not UTF-8: {_recode(path)}")
        if len(set(table.column_names)) < len(table.column_names):
            return table  # the caller refuses it
        if separator == ";" and any(_all_match(column, DECIMAL_COMMA) for column in _texts(table).values()):
            if any(pa.types.is_floating(kind) for kind in table.schema.types):
                raise DataError(f"{path} holds decimal commas in some columns and decimal points in others: use one of them")
            table = parse(kinds, decimal=",")
            emit("decimal_comma", file=path.name)
        if separator != ",":
            emit("separator", file=path.name, separator="tab" if separator == "\t" else separator)
        kind_of = dict(zip(table.column_names, table.schema.types, strict=True))
        whole = {name for name, kind in kind_of.items() if name not in numbers and pa.types.is_integer(kind)}
        truths = {name for name, kind in kind_of.items() if pa.types.is_boolean(kind)}
        dates = {name for name, kind in kind_of.items() if name == label and pa.types.is_temporal(kind)}
        doubtful = [name for name in kind_of if name in whole | truths | dates]  # only their text decides
        for name, column in _texts(parse(dict.fromkeys(doubtful, pa.string()), only=doubtful)).items() if doubtful else ():
            place = table.column_names.index(name)
            if name in truths:
                words = {str(pa.scalar(word).cast(pa.bool_())).lower(): word for word in column.unique().to_pylist() if word}
                table = table.set_column(place, pa.field(name, pa.bool_(), metadata=words), table[name])
            elif name in dates or pyarrow.compute.any(pyarrow.compute.match_substring_regex(column, ZERO_PADDED)).as_py():
                table = table.set_column(place, name, column)
    except (pa.ArrowException, MemoryError) as error:
        raise DataError(f"{path} is not a CSV table: {' '.join(str(error).split())[:200]}") from error
    return table


def _recode(path: Path) -> str:
    return f"save it as UTF-8 (iconv -f latin1 -t utf-8 {path.name} > new.csv)"


def _texts(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names if pa.types.is_string(table[name].type)}


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    """Return whether all values that are not missing match, and any has a comma."""
    matches = pyarrow.compute.match_substring_regex(column, pattern)
    commas = pyarrow.compute.match_substring(column, ",")
    return bool(pyarrow.compute.all(matches).as_py() and pyarrow.compute.any(commas).as_py())
