"""Reader of a CSV file: encoding, separator and decimal sign as its content shows them, and one rule for missing values.

The metadata of a column of truth values are its words for ``false`` and ``true``.

A placeholder (placeholders.py) is a missing value, in numeric and in text columns alike. Whole numbers with leading zeros (02139)
are codes: their column stays text.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from remint.data.blocks import Spool, memory_limit
from remint.data.lazy import SHARE, LazyTable, check_column_count, check_rows, in_memory, spooled
from remint.data.placeholders import held, noted
from remint.data.written_numbers import PLAIN, has_codes
from remint.errors import DataError
from remint.records import DataSpec
from remint.runtime.events import emit

SEPARATORS = ";\t|"  # beside the comma
MOST_BYTES = 2 << 30
WIDENS = 2  # a table in memory has at most some twice the bytes of its CSV file
LONGEST_HEADER = 1 << 21  # bytes of the first line that are looked at
DECIMAL_COMMA = r"^\s*[-+]?[0-9]+(,[0-9]+)?\s*$"

Part = BinaryIO | None  # a file of some columns; None: the file itself


def read(
    path: Path,
    text: Collection[str],
    known: DataSpec | None,
    missing: Sequence[str],
    spool: Spool,
    header: list[str] | None = None,
    label: str | None = None,
) -> LazyTable:
    """Read a CSV file. A large one is first divided into files of a few columns each, in the spool.

    Arguments: ``text`` columns that are read as text, ``known`` the spec in the schema, whose numbers are never codes,
    ``missing`` cells that are missing values, ``header`` column names in place of the first line, ``label`` a column whose dates
    are read as text. Raises DataError if it is not a table of UTF-8 text (or UTF-16 with its mark). Raises SettingsError if a
    column exceeds the memory limit.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES >> 20:,} MiB: use fewer rows, or save it as Parquet")
    encoding, separator = dialect(path)
    numbers = {column.name for column in known.columns if column.numeric} if known else set()
    reading = pyarrow.csv.ReadOptions(column_names=header, skip_rows=1 if header else 0, encoding=encoding)
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=separator)

    def parse(part: Part, kinds: dict[str, pa.DataType], decimal: str, only: list[str], missing: Sequence[str]) -> pa.Table:
        converting = pyarrow.csv.ConvertOptions(
            column_types=kinds, null_values=list(missing), strings_can_be_null=True, decimal_point=decimal, include_columns=only
        )
        if part is None:
            return pyarrow.csv.read_csv(path, read_options=reading, parse_options=parsing, convert_options=converting)
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with _reopened(part, "rb") as file:
            return pyarrow.csv.read_csv(file, parse_options=options, convert_options=converting)

    try:
        parts = _divide(path, reading, parsing, spool)
        table = _Parts(path, parts, parse, dict.fromkeys(text, pa.string()), missing)
        if separator == ";" and table.has_decimal_commas():
            table.decimal = ","
            emit("decimal_comma", file=path.name)
        decided = (
            _note_placeholders(
                _decide_by_text(each, partial(table.text, part), numbers, label), partial(table.text, part), missing
            )
            for part, each in table
        )
        found = spooled(decided, spool) if len(parts) > 1 else in_memory(next(decided))
    except (pa.ArrowException, MemoryError) as error:
        raise DataError(f"{path} is not a CSV table: {' '.join(str(error).split())[:200]}") from error
    if encoding != "utf8":
        emit("encoding", file=path.name, encoding="UTF-16")
    if separator != ",":
        emit("separator", file=path.name, separator="tab" if separator == "\t" else separator)
    return found


def dialect(path: Path) -> tuple[str, str]:
    """Return encoding and separator of a CSV file, as its first two lines show them. Raises DataError if it is no such text."""
    with path.open("rb") as stream:
        first, second = stream.readline(LONGEST_HEADER), stream.readline(LONGEST_HEADER)
    check_column_count(str(path), first.count(b",") + 1)
    encoding = "utf-16" if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf8"
    try:
        codecs.getincrementaldecoder(encoding)().decode(first)  # which allows a cut last character
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the column names are not UTF-8: {_recode(path)}") from error
    lines = (first + second).decode(encoding, "replace").splitlines()
    if any("\0" in line for line in lines):
        raise DataError(f"{path} holds zero bytes, as UTF-16 and UTF-32 do: save it as UTF-8")
    separator = _separator(lines)
    words = [line.split() for line in lines if separator not in line]
    if len(words) == 2 and len(words[0]) == len(words[1]) > 1 and any(re.fullmatch(PLAIN, word) for word in words[1]):
        raise DataError(f"{path} seems to have spaces between its columns: save it with commas")
    return encoding, separator


def _separator(lines: list[str]) -> str:
    """Return the separator that the first two lines have equally often, outside of quotes; else one of the first line."""
    counts = {mark: [re.sub('"[^"]*"', "", line).count(mark) for line in lines] for mark in ("," + SEPARATORS)}
    alike = [mark for mark, found in counts.items() if found and found[0] == found[-1] > 0]
    return next(iter(alike or [mark for mark, found in counts.items() if found and found[0]]), ",")


def _divide(path: Path, reading: pyarrow.csv.ReadOptions, parsing: pyarrow.csv.ParseOptions, spool: Spool) -> list[Part]:
    """Return files of some columns each, with the text of the cells; [None] if the file is small.

    Arrow finds the type of a column by all of its values, and keeps the text of the whole file until then.
    """
    count = math.ceil(WIDENS * path.stat().st_size * SHARE / memory_limit())
    if count == 1:
        return [None]
    with pyarrow.csv.open_csv(path, read_options=reading, parse_options=parsing) as stream:
        names = list(stream.schema.names)
    if len(set(names)) < len(names):
        return [None]  # the caller refuses it
    size = max(1, len(names) // count)
    groups = [names[at : at + size] for at in range(0, len(names), size)]
    files = [spool.file() for _ in groups]
    converting = pyarrow.csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(names, pa.string()), null_values=[])
    with ExitStack() as stack:
        stream = pyarrow.csv.open_csv(path, read_options=reading, parse_options=parsing, convert_options=converting)
        stack.enter_context(stream)
        writers = []
        for file, group in zip(files, groups, strict=True):
            schema = pa.schema([(name, pa.string()) for name in group])
            writers.append(stack.enter_context(pyarrow.csv.CSVWriter(stack.enter_context(_reopened(file, "wb")), schema)))
        for batch in stream:
            for writer, group in zip(writers, groups, strict=True):
                writer.write_batch(batch.select(group))
    return [*files]


def _reopened(file: BinaryIO, mode: str) -> Any:
    """Return an open file at its beginning, which Arrow may close."""
    file.seek(0)
    return os.fdopen(os.dup(file.fileno()), mode)


class _Parts:
    """Parts of a file, which have some of its columns each. A part is parsed when it is asked for."""

    def __init__(
        self,
        path: Path,
        parts: list[Part],
        parse: Callable[..., pa.Table],
        kinds: dict[str, pa.DataType],
        missing: Sequence[str],
    ) -> None:
        self.path, self.parts, self.parse, self.kinds, self.missing, self.decimal = path, parts, parse, kinds, missing, "."

    def __iter__(self) -> Iterator[tuple[Part, pa.Table]]:
        for part in self.parts:
            table = self.parse(part, self.kinds, self.decimal, [], self.missing)
            if any(pa.types.is_binary(kind) for kind in table.schema.types):
                raise DataError(f"{self.path} is not UTF-8: {_recode(self.path)}")
            if part is not None:
                check_rows(table.num_rows)
            yield part, table

    def has_decimal_commas(self) -> bool:
        """Return whether a column holds decimal commas. Raises DataError if another one holds decimal points."""
        commas = points = False
        for _, table in self:
            if len(set(table.column_names)) < len(table.column_names):
                return False  # the caller refuses it
            commas = commas or any(_all_match(column, DECIMAL_COMMA) for column in _texts(table).values())
            points = points or any(pa.types.is_floating(kind) for kind in table.schema.types)
        if commas and points:
            raise DataError(f"{self.path} holds decimal commas in some columns and decimal points in others: use one of them")
        return commas

    def text(self, part: Part, names: list[str], missing: Sequence[str] | None = None) -> pa.Table:
        """Return columns as the text that the file has. ``missing``: cells that are missing values, where others are."""
        return self.parse(part, dict.fromkeys(names, pa.string()), ".", names, self.missing if missing is None else missing)


def _decide_by_text(
    table: pa.Table, parse_text: Callable[[list[str]], pa.Table], numbers: Collection[str], label: str | None
) -> pa.Table:
    """Return the table with those columns that only their text decides: truth values, dates of a label, and codes."""
    if len(set(table.column_names)) < len(table.column_names):
        return table  # the caller refuses it
    kind_of = dict(zip(table.column_names, table.schema.types, strict=True))
    whole = {name for name, kind in kind_of.items() if name not in numbers and pa.types.is_integer(kind)}
    truths = {name for name, kind in kind_of.items() if pa.types.is_boolean(kind)}
    dates = {name for name, kind in kind_of.items() if name == label and pa.types.is_temporal(kind)}
    doubtful = [name for name in kind_of if name in whole | truths | dates]
    for name, column in _texts(parse_text(doubtful)).items() if doubtful else ():
        place = table.column_names.index(name)
        if name in truths:
            words = {str(pa.scalar(word).cast(pa.bool_())).lower(): word for word in column.unique().to_pylist() if word}
            table = table.set_column(place, pa.field(name, pa.bool_(), metadata=words), table[name])
        elif name in dates or has_codes(column):
            table = table.set_column(place, name, column)
    return table


def _note_placeholders(table: pa.Table, parse_text: Callable[..., pa.Table], missing: Sequence[str]) -> pa.Table:
    """Return the table with the placeholders of each column in its metadata."""
    names = [name for name, column in zip(table.column_names, table.columns, strict=True) if column.null_count]
    if not names or len(set(table.column_names)) < len(table.column_names):
        return table
    raw = parse_text(names, missing[:1])
    fields = [noted(field, held(raw[field.name], missing)) if field.name in names else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _recode(path: Path) -> str:
    return f"save it as UTF-8 (iconv -f latin1 -t utf-8 {path.name} > new.csv)"


def _texts(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names if pa.types.is_string(table[name].type)}


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    """Return whether all values that are not missing match, and any has a comma."""
    matches = pyarrow.compute.match_substring_regex(column, pattern)
    commas = pyarrow.compute.match_substring(column, ",")
    return bool(pyarrow.compute.all(matches).as_py() and pyarrow.compute.any(commas).as_py())
