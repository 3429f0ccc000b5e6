"""A person's examples, in the form of a model that is already trained. Reading learns nothing from them.

    images   an array as datasets: takes it; a file or folder of images, an .npy, .npz, .zip or .tar file, idx:FOLDER
    a table  a DataFrame, an Arrow table, a .csv or .parquet file; an array (N, D) if all D columns are numeric

A column that the model does not know is ignored, and named; a missing one is an error. Everything is read in blocks.

Shapes: N examples, D columns, X the axes of one example.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from remint.data import columns, decisions, folder, formats, images, pictures, sources, tables
from remint.data.blocks import Blocks, Spool
from remint.data.columns import UnusableColumn
from remint.data.lazy import Columns
from remint.data.values import IMAGE_LEVELS, Raw
from remint.errors import DataError, SettingsError
from remint.records import Column, DataSpec
from remint.runtime import scratch
from remint.runtime.manifest import full_disk_as_storage_error
from remint.settings.dataset import DatasetSettings, ResizeSettings

NAME = "input"  # of the dataset in messages of the readers, taken out again
PLACE = re.compile(rf"params\.yaml: datasets\.{NAME}\.[a-z_.]+: ")
REMEDY = re.compile(rf": set datasets\.{NAME}\..*")  # which a model that is already trained does not have
IMAGE_FILES = {suffix for each in formats.FORMATS if each.remedy == formats.PICTURES for suffix in each.suffixes}
MOST_NAMED = 3  # columns or examples in a message

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Examples:
    """Examples in the model's form: images uint8 (N, C, H, W); rows float32 (N, D) as records.DataSpec says."""

    x_NX: Blocks
    y_N: Array | None  # int64, the classes, where the input has them
    names: tuple[str, ...] = ()  # of the images' files; () for others
    row_N: Array | None = None  # number of each row in the input, from 0; None: all rows, in order
    set_aside: Mapping[str, str] = field(default_factory=dict)  # file or row -> reason
    ignored: tuple[str, ...] = ()  # columns that the model does not know

    def __len__(self) -> int:
        return len(self.x_NX)


@contextmanager
def read(spec: DataSpec, data: Any, *, gaps: bool = False, skip_bad: bool = False, labels: bool = True) -> Iterator[Examples]:
    """Yield the examples of an array, a table, or a path, while the block lasts.

    ``gaps``: any value of a row may be missing, also where the training data lacked none. ``skip_bad``: set examples aside that
    do not fit, in place of an error. ``labels``: read the classes too, if there are any.

    Raises DataError, in one line, if they are no examples of the model.
    """
    where = str(data) if isinstance(data, str | Path) else f"the {type(data).__name__}"
    room = full_disk_as_storage_error(Path(tempfile.gettempdir()), "nothing was written")
    with room, scratch.folder() as temporary, Spool(temporary) as spool:
        try:
            reader = _read_table if spec.is_table else _read_images
            examples = reader(_with_gaps(spec) if gaps else spec, data, temporary, spool, skip_bad, labels and spec.classes > 0)
        except (DataError, SettingsError) as error:
            said = REMEDY.sub(": give such values as the training data have", PLACE.sub("", str(error)))
            raise type(error)(said.replace(str(temporary / "input.parquet"), where)) from error
        yield examples


def _with_gaps(spec: DataSpec) -> DataSpec:
    return spec.model_copy(update={"columns": tuple(column.model_copy(update={"missing": True}) for column in spec.columns)})


def _locate(data: str | Path, settings: DatasetSettings) -> Path | str:
    if settings.source.startswith(sources.REMOTE):
        raise DataError(f"{data}: copy it to this machine first")
    found = sources.locate_source(NAME, settings, Path.cwd(), None)
    if isinstance(found, Path) and found.is_file():
        formats.check_name(found)
    return found


def _read_images(spec: DataSpec, data: Any, temporary: Path, spool: Spool, skip_bad: bool, labels: bool) -> Examples:
    c, h, w = spec.image
    settings = DatasetSettings.model_construct(
        source=str(data) if isinstance(data, str | Path) else "",
        levels=None if spec.levels == IMAGE_LEVELS else spec.levels,
        bits=spec.bits,
        channels=c if spec.converted else None,
        resize=ResizeSettings(size=[h, w], filter=spec.filter) if spec.filter else None,  # type: ignore[arg-type]
        undecodable=1.0 if skip_bad else 0.0,
    )
    only = (c, h, w) if skip_bad else None
    if not isinstance(data, str | Path):
        raw = Raw(where="the array", x=Blocks.of(_as_array(data)), y=None, levels=IMAGE_LEVELS)
    elif Path(data).suffix.lower() in IMAGE_FILES and Path(data).is_file():
        raw = pictures.read(str(data), folder.Walk(partial(folder.one_file, Path(data))), settings, spool, spec, only)
    else:
        raw = sources.read_images(settings, _locate(data, settings), spec, spool, only)
    raw = _with_numbers(replace(raw, x=_from_bytes(raw.x, spec.levels)), spec)
    raw = raw if labels else replace(raw, y=None, class_names=())
    if raw.x.shape[1:] in ((c, h, w), (h, w, c), (h, w)):
        settings = settings.model_copy(update={"shape": [c, h, w]})  # which axis has the channels is known
    known = spec if raw.y is not None else spec.model_copy(update={"classes": 0, "class_names": ()})
    arrays, differences = images.conform(images.check(NAME, settings, raw, known), known)
    if differences:
        raise DataError(f"{raw.where} has no images of this model: {'; '.join(_plainer(each) for each in differences)}")
    return Examples(arrays["x"], arrays.get("y"), raw.names, set_aside=raw.set_aside)


def _as_array(data: Any) -> Array:
    """Return images as an array. Raises DataError for rows of several lengths, and for what NumPy does not take."""
    try:
        return np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"the {type(data).__name__} is no array of images: {' '.join(str(error).split())[:200]}") from error


def _from_bytes(x: Blocks, levels: int) -> Blocks:
    """Return images whose values are levels that were spread over 0 .. 255, as picture files have them, as these levels.

    The decoder has done that already with the files of outputs.write_png, which say it.
    """
    spread = np.rint(np.arange(levels) * (255 / (levels - 1)))
    if levels == IMAGE_LEVELS or x.dtype != np.uint8 or not x.size or x.max() < levels:
        return x
    if not all(np.isin(x_BX, spread).all() for x_BX in x):
        return x  # the check of the values refuses them
    return x.map(lambda x_BX: np.rint(x_BX * ((levels - 1) / 255)).astype(np.uint8))


def _with_numbers(raw: Raw, spec: DataSpec) -> Raw:
    """Return images whose classes are named as the model's: folders 0, 1, .. are numbers, and numbers of an array are places."""
    if raw.y is not None and not raw.class_names and spec.class_names and not all(map(str.isdigit, spec.class_names)):
        if not np.isin(raw.y, range(spec.classes)).all():
            raise DataError(f"{raw.where}: y has numbers that are none of the {spec.classes} classes of the model, from 0")
        return replace(raw, class_names=spec.class_names)
    if raw.y is None or spec.class_names or not all(name.isdigit() and int(name) < spec.classes for name in raw.class_names):
        return raw
    return replace(raw, y=np.array([int(name) for name in raw.class_names])[raw.y] if raw.class_names else raw.y, class_names=())


def _plainer(difference: str) -> str:
    """Return a difference from the schema as one from the model."""
    return re.sub(r"was (.*), is now (.*)", r"the model has \1, these have \2", difference)


def _read_table(spec: DataSpec, data: Any, temporary: Path, spool: Spool, skip_bad: bool, labels: bool) -> Examples:
    if not isinstance(data, str | Path):
        table = _as_arrow(spec, data)
        try:
            pyarrow.parquet.write_table(table, temporary / "input.parquet")
        except pa.ArrowException as error:  # a type that Parquet does not have
            raise DataError(f"the {type(data).__name__} cannot be read: {' '.join(str(error).split())[:200]}") from error
        data = temporary / "input.parquet"
    settings = DatasetSettings.model_construct(source=str(data), kind="table")
    source = _locate(data, settings)
    if isinstance(source, Path) and source.suffix.lower() not in sources.TABLES:
        raise DataError(f"{source} is not a table: expected a .csv or .parquet file")
    table = tables.read(NAME, settings, source, spec, spool)
    known = {column.name: column for column in spec.columns}
    missing = [name for name in known if name not in table.features]
    if missing:
        raise DataError(
            f"{table.where} lacks {_named('column', missing)} of the model: add {'it' if len(missing) == 1 else 'them'}"
        )
    ignored = tuple(name for name in table.features if name not in known)
    label = spec.label.name if spec.label is not None and labels and spec.label.name in ignored else None
    features, row_N = Columns.of(table.features), None
    checked = [*known.values(), *([Column(name=label, categories=spec.class_names)] if label else [])] if skip_bad else []
    bad = {row: reason for column in checked for row, reason in _bad_rows(features[column.name], column).items()}
    if bad:
        row_N = np.setdiff1d(np.arange(len(table)), list(bad))
        if not len(row_N):
            raise DataError(f"{table.where} has no row that this model can take: {bad[0]} in row 1")
        features = features.map(lambda _, column: column.take(pa.array(row_N)))
    numbers = features.map(partial(_numbers, table.where, known), list(known))
    arrays, differences = tables.conform(replace(table, features=numbers, label=None), spec.model_copy(update={"classes": 0}))
    if differences:
        raise DataError(f"{table.where} has no rows of this model: {'; '.join(differences[:MOST_NAMED])}")
    x_ND = arrays["x"].map(lambda x_BD: columns.standardise(x_BD, spec.columns))
    y_N = None if label is None else _classes(table.where, features[label], spec)
    set_aside = {f"row {row + 1}": reason for row, reason in bad.items()}
    return Examples(x_ND, y_N, row_N=row_N, set_aside=set_aside, ignored=tuple(name for name in ignored if name != label))


def _as_arrow(spec: DataSpec, data: Any) -> pa.Table:
    """Return a DataFrame, an Arrow table or an array as an Arrow table. Raises DataError if it is none of them."""
    try:
        if isinstance(data, pa.RecordBatch):
            return pa.Table.from_batches([data])
        if isinstance(data, pa.Table):
            return data
        if hasattr(data, "columns"):
            return pa.Table.from_pandas(data, preserve_index=False)
        array = np.asarray(data, dtype=np.float64)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError, RuntimeError) as error:
        raise DataError(f"the {type(data).__name__} is not a table: {' '.join(str(error).split())[:200]}") from error
    if array.ndim != 2 or array.shape[1] != len(spec.columns) or not all(column.numeric for column in spec.columns):
        names = _named("column", [column.name for column in spec.columns])
        raise DataError(f"an array of shape {array.shape} has no rows of this model: give a DataFrame with the {names}")
    return pa.table({column.name: x_N for column, x_N in zip(spec.columns, array.T, strict=True)})


def _classes(where: str, column: pa.ChunkedArray, spec: DataSpec) -> Array:
    try:
        y_N = columns.column_values(column, Column(name="", categories=spec.class_names))
    except UnusableColumn as reason:
        assert spec.label is not None
        raise DataError(f"{where}: label '{spec.label.name}' {reason}") from reason
    return y_N.astype(np.int64)


def _numbers(where: str, known: Mapping[str, Column], name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of the model, and text in place of numbers as numbers."""
    return decisions.parse_numbers(f"{where}: column '{name}'", column) if known[name].numeric else column


def _bad_rows(column: pa.ChunkedArray, known: Column) -> dict[int, str]:
    """Return the rows, from 0, whose value does not fit, each with the reason."""

    def problem(part: pa.ChunkedArray) -> str:
        try:
            columns.check_type(part)
            columns.column_values(_numbers("", {known.name: known}, known.name, part), known)
            return ""
        except (UnusableColumn, DataError) as reason:
            return f"column '{known.name}' {reason}" if isinstance(reason, UnusableColumn) else str(reason).removeprefix(": ")

    if not problem(column):
        return {}
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    problems = [problem(pa.chunked_array([encoded.dictionary[place : place + 1]])) for place in range(len(encoded.dictionary))]
    code_N = encoded.indices.to_numpy(zero_copy_only=False)
    return {row: problems[code] for row, code in enumerate(code_N.tolist()) if problems[code]}


def _named(noun: str, names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:MOST_NAMED]) + (", .." if len(names) > MOST_NAMED else "")
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}"
