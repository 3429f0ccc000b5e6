"""Reader of CSV, Parquet and scikit-learn tables: columns of numbers and, with a label, classes.

    columns x float64 (N, D), the original numbers and the indices of categories, NaN where one is missing
    y       int64 (N,), the index of each row's class in DataSpec.class_names

The same content gives the same arrays from CSV and from Parquet.

Shapes: N rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from remint.data import columns, csv_tables, decisions, dividing, parquet_tables, placeholders, shipped
from remint.data.blocks import Spool
from remint.data.columns import MOST_CATEGORIES, UnusableColumn
from remint.data.decisions import Reason
from remint.data.lazy import Columns, Matrix, check_names
from remint.errors import DataError
from remint.records import Column, DataSpec
from remint.runtime.events import emit
from remint.settings.base import did_you_mean
from remint.settings.dataset import DatasetSettings

BOOLEANS = {"false", "true"}
DRIFT_SCALES = 10.0  # scales by which a column's mean may move before an event reports it

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Table:
    """Table as read: the selected columns and the label column."""

    where: str
    features: Mapping[str, pa.ChunkedArray]  # of a file: lazy.Columns, read again at each access
    label: pa.ChunkedArray | None
    label_name: str
    class_names: tuple[str, ...]  # of the label, in order, if the source defines them
    label_at: int = 0  # number of features before the label in the source
    suffix: str = ".csv"  # of the source
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # type and truth of records.Column, by column
    reasons: Mapping[str, Reason] = field(default_factory=dict)  # of decisions that are not obvious, by column
    dividing: Mapping[str, pa.ChunkedArray] = field(default_factory=dict)  # by key of ``split:``; no features
    gapped: frozenset[str] = frozenset()  # features that lacked values in rows that were dropped
    spool: Spool = field(default_factory=Spool)  # for the rows

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


def read(name: str, settings: DatasetSettings, source: Path | str, known: DataSpec | None, spool: Spool) -> Table:
    """Read a .csv or .parquet file or a ``sklearn:`` table, with the rows and columns that the settings select.

    ``spool`` holds a large table. Raises DataError if the file is not a table, or if settings name columns that it does not have.
    """
    where, label, class_names = str(source), settings.label, tuple[str, ...]()
    missing = placeholders.missing_cells(settings, known)
    if isinstance(source, str):
        path, header, class_names = shipped.table(source)
        table, label = csv_tables.read(path, set(), None, missing, spool, header), label or shipped.TARGET
    elif source.suffix.lower() == ".csv":
        text = _text_columns(known, settings.label) | dividing.text_columns(settings, known)
        table = csv_tables.read(source, text.union(settings.categorical), known, missing, spool, label=label)
    else:
        table = parquet_tables.read(source, missing)
    check_names(where, table)
    learnt = {column.name for column in known.columns} if known else set()  # a column of the schema stays one
    stated = learnt.union(settings.categorical, settings.numeric, [label] if label else [])
    divided_by = dividing.select(name, settings, where, table)
    decided = decisions.find(table, stated, {*dividing.names(settings).values()})
    reasons = {column: reason for column, reason in decided.items() if column not in settings.drop}
    table = table.drop_columns([column for column, reason in reasons.items() if reason.left_out])
    if not table.num_rows:
        raise DataError(f"{where} has no rows")
    for key, names in (
        ("label", [label] if label else []),
        ("categorical", settings.categorical),
        ("numeric", settings.numeric),
        ("drop", settings.drop),
    ):
        for column in names:
            if column not in table.column_names and not (key == "drop" and known):
                problem = did_you_mean(f"column '{column}'", column, table.column_names)
                raise DataError(f"params.yaml: datasets.{name}.{key}: {where}: {problem}")
    forms = {each.name: _form(each) for each in table.schema}
    named = {*settings.categorical, label, *(column for column, reason in reasons.items() if reason.categorical)}
    names = [each for each in table.column_names if each not in settings.drop]
    label_at = names.index(label) if label else 0
    y = _decode(table[label], text=True) if label else None
    if y is not None and class_names:
        y = pa.chunked_array([[class_names[place] for place in y.to_pylist()]])
        forms.pop(label or "")
    if names in ([], [label]):
        raise DataError(f"{where} has no columns except the label and the dropped ones: drop fewer")

    def numbers_or_text(column_name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        column = _decode(column, text=column_name in named)
        key = f"params.yaml: datasets.{name}.numeric: {where}: column '{column_name}'"
        return decisions.parse_numbers(key, column) if column_name in settings.numeric else column

    kept = table.read.map(numbers_or_text, [each for each in names if each != label])
    suffix = source.suffix.lower() if isinstance(source, Path) else ".csv"
    found = Table(where, kept, y, label or "", class_names, label_at, suffix, forms, reasons, divided_by, spool=spool)
    return _drop_incomplete_rows(found) if settings.missing == "drop_rows" else found


def _form(field: pa.Field) -> dict[str, Any]:
    """Return the fields of records.Column by which drawn rows are written as the source has them."""
    words = field.metadata or {}
    truth = tuple(words.get(word, word).decode() for word in (b"false", b"true"))
    return {"type": columns.type_name(field.type), "truth": truth}


def _form_of(name: str, column: pa.ChunkedArray, table: Table, *, categorical: bool) -> dict[str, Any]:
    """Return the form of one column. A category of double precision, such as 1.0, is one again, where others are text."""
    form = dict(table.forms.get(name, {}))
    return form | {"type": "double"} if categorical and column.type == pa.float64() else form


def _text_columns(known: DataSpec | None, label: str | None) -> set[str]:
    """Return the text columns of the first import. They stay text even if all values now look like numbers or booleans."""
    if known is None:
        return set()
    names = {column.name: column.categories for column in known.columns} | ({label: known.class_names} if label else {})
    return {name for name, categories in names.items() if set(columns.non_numeric(list(categories))) - BOOLEANS}


def _decode(column: pa.ChunkedArray, *, text: bool) -> pa.ChunkedArray:
    """Return the values of a dictionary; with ``text``, dates and times as text."""
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return column.cast(pa.string()) if text and pa.types.is_temporal(column.type) else column


def _drop_incomplete_rows(table: Table) -> Table:
    """Return the table without rows that have missing values."""
    missing_N, gapped = np.zeros(len(table), bool), set()
    for name, column in table.features.items():
        if not _has_unusable_type(column):
            lacks_N = columns.is_missing(column)
            missing_N |= lacks_N
            gapped |= {name} if lacks_N.any() else set()
    for column in [*([] if table.label is None else [table.label]), *table.dividing.values()]:
        if not _has_unusable_type(column):
            missing_N |= columns.is_missing(column)
    if missing_N.all():
        raise DataError(
            f"{table.where}: every row has a missing value: set missing: keep, or drop the columns with missing values"
        )
    if not missing_N.any():
        return table
    emit("dropped_rows", rows=int(missing_N.sum()), of=len(table))
    mask = pa.array(~missing_N)
    features = Columns.of(table.features).map(lambda name, column: column.filter(mask))
    label = None if table.label is None else table.label.filter(mask)
    divided_by = {key: column.filter(mask) for key, column in table.dividing.items()}
    return replace(table, features=features, label=label, gapped=frozenset(gapped), dividing=divided_by)


def _has_unusable_type(column: pa.ChunkedArray) -> bool:
    try:
        columns.check_type(column)
    except UnusableColumn:
        return True
    return False


def learn(name: str, settings: DatasetSettings, table: Table) -> DataSpec:
    """Learn the table's spec. Raises DataError, with a line for each column that no model can learn from."""
    learnt, problems, unusable = [], [], []
    for column_name, column in table.features.items():
        try:
            columns.check_type(column)
            categorical = column_name in settings.categorical or (
                column_name in table.reasons and table.reasons[column_name].categorical
            )
            stated, gapped = column_name in settings.numeric, column_name in table.gapped
            known = columns.learn_column(column_name, column, categorical=categorical, numeric=stated, gapped=gapped)
            form = _form_of(column_name, column, table, categorical=not known.numeric)
            if known.whole and form.get("type") == "int64":
                form.pop("type")  # the type of whole numbers by default, also of those that pandas made floats
            learnt.append(known.model_copy(update=form))
        except UnusableColumn as reason:
            problems.append(f"column '{column_name}' {reason}")
            unusable.append(column_name)
    class_names: tuple[str, ...] = ()
    if table.label is not None:
        try:
            class_names = _classes(table, table.label)
        except UnusableColumn as reason:
            problems.append(f"label '{table.label_name}' {reason}")
    if problems:
        drop = ", ".join([*settings.drop, *unusable])
        remedy = [f"to leave them out: datasets.{name}.drop: [{drop}]"] if unusable else []
        lines = [
            f"params.yaml: datasets.{name}.source: {table.where} has columns that no model can learn from:",
            *(f"  {p}" for p in problems),
        ]
        raise DataError("\n".join([*lines, *remedy]))
    label = None
    if table.label is not None:
        form = _form_of(table.label_name, table.label, table, categorical=True)
        label = Column(name=table.label_name, categories=class_names, **form)
    return DataSpec(
        shape=(len(learnt),),
        columns=tuple(learnt),
        classes=len(class_names),
        class_names=class_names,
        label=label,
        label_at=table.label_at,
        suffix=table.suffix,
    )


def _classes(table: Table, label: pa.ChunkedArray) -> tuple[str, ...]:
    columns.check_type(label)
    code_N, names = columns.as_categories(label)
    if (code_N < 0).any():
        raise UnusableColumn(f"is missing in {int((code_N < 0).sum())} of {len(code_N)} rows: add it, or set missing: drop_rows")
    if not 2 <= len(names) <= MOST_CATEGORIES:
        raise UnusableColumn(f"has {len(names)} classes: expected 2 to {MOST_CATEGORIES}")
    return table.class_names or tuple(names)


def conform(table: Table, spec: DataSpec) -> tuple[dict[str, Any], list[str]]:
    """Return x (Blocks) and y in the form of the schema ``spec``, and a description of each difference that prevents this."""
    if not spec.is_table:
        return {}, ["was images, is now a table"]
    differences, x = [], Matrix(table.spool)
    for known in spec.columns:
        try:
            if known.name not in table.features:
                raise UnusableColumn("is missing")
            column = table.features[known.name]
            columns.check_type(column)
            x_N = columns.column_values(column, known)
            x.append(x_N)
            _report_drift(known, x_N)
        except UnusableColumn as reason:
            differences.append(f"column '{known.name}' {reason}")
    names = {known.name for known in spec.columns}
    differences += [f"column '{name}' is new" for name in table.features if name not in names]
    arrays: dict[str, Any] = {}
    if (table.label is None) != (spec.classes == 0):
        differences.append(
            "labels: were absent, are now present" if table.label is not None else "labels: were present, are now absent"
        )
    elif table.label is not None:
        try:
            columns.check_type(table.label)
            arrays["y"] = columns.column_values(table.label, Column(name="", categories=spec.class_names)).astype(np.int64)
        except UnusableColumn as reason:
            differences.append(f"label '{table.label_name}' {reason}")
    return ({} if differences else {"x": x.blocks(), **arrays}), differences


def _report_drift(known: Column, x_N: Array) -> None:
    """Emit an event if a column's mean moved far. Such data are not refused, but a person should check them."""
    if known.numeric and not np.isnan(x_N).all():
        moved = (float(np.nanmean(x_N)) - known.mean) / known.scale
        if abs(moved) > DRIFT_SCALES:
            emit("drift", column=known.name, mean=float(np.nanmean(x_N)), before=known.mean, scales=moved)
