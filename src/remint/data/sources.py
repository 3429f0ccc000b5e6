"""Where a dataset comes from: a source is read, held against its schema and written down as one snapshot.

    snapshot(name, settings, root, out) -> out/
        data.npz          x  images uint8 (N, C, H, W), values 0 .. levels-1; a table's columns float64 (N, D), see tables.py
                          y  int64 (N,), class numbers from 0; absent where the source has no labels
        schema.json       schema.Schema: what x and y mean
        set_aside.json    image files that could not be used, and why; absent where there are none

The same source gives the same bytes, so that DVC sees a change of the data and of nothing else.

Shapes: N examples, C channels, H height, W width, D columns.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from remint.data import archive, folder, idx, images, numpy_files, schema, shipped
from remint.data.images import Raw
from remint.data.schema import SCHEMA, SNAPSHOT, Schema
from remint.errors import DataError, SettingsError
from remint.records import DataSpec
from remint.runtime.events import emit
from remint.settings.recipe import DatasetSettings

SET_ASIDE = "set_aside.json"
REMOTE = "s3://"  # what lies there is fetched beforehand, by storage.py
IDX = "idx:"

FILES: dict[str, Callable[[Path], Raw]] = {".npy": numpy_files.npy, ".npz": numpy_files.npz}
TABLES = (".csv", ".parquet")
KNOWN = (
    "a folder of images, file.npy, file.npz, file.zip, file.tar, file.tar.gz, file.csv, file.parquet, idx:FOLDER, "
    f"s3://bucket/prefix, {', '.join([*shipped.IMAGES, *shipped.TABLES])}"
)

Array = np.ndarray[Any, Any]
Conform = Callable[[DataSpec], tuple[dict[str, Array], list[str]]]


def snapshot(
    name: str, settings: DatasetSettings, root: Path, out: Path, *, fetched: Path | None = None, schemas: Path | None = None
) -> None:
    """Reads the source of dataset ``name`` (a relative path below ``root``) and writes the snapshot to ``out``.

    ``fetched``: the folder that holds what lies at an s3:// source. ``schemas``: the folder in which schemas are kept;
    without it each import learns its own.

    Raises SettingsError for a source that is not known, DataError for one that is missing, empty, broken, not of the
    shape and levels that params.yaml asks for or not of its schema.
    """
    known = schema.read_schema(schemas, name, settings)
    try:
        source = located(name, settings, root, fetched)
        if settings.kind == "table":
            spec, conform, set_aside = _table(name, settings, source, known)
        else:
            spec, conform, set_aside = _images(name, settings, source)
    except DataError as error:  # a reader knows its file; the key it was named by is known here
        if "params.yaml:" in str(error):
            raise
        raise DataError(f"params.yaml: datasets.{name}.source: {error}") from error
    stands = known or schema.make_schema(name, settings, spec)
    arrays = _fitting(stands, settings, conform)
    if schemas is not None and known is None:
        stands = schema.save_schema(stands, schemas)
        arrays = _fitting(stands, settings, conform)  # somebody else's, where two first imports met
    shutil.rmtree(out, ignore_errors=True)  # never write through a link into DVC's cache
    out.mkdir(parents=True)
    np.savez(out / SNAPSHOT, allow_pickle=False, **arrays)
    stands.write(out / SCHEMA)
    if set_aside:
        (out / SET_ASIDE).write_text(json.dumps(set_aside, indent=1) + "\n")


def located(name: str, settings: DatasetSettings, root: Path, fetched: Path | None) -> Path | str:
    """The file or folder that the source means, or its name where it ships with a package."""
    source = settings.source
    if source in (*shipped.IMAGES, *shipped.TABLES):
        return source
    if source.startswith(REMOTE):
        if fetched is None or not fetched.is_dir():
            raise DataError(f"{source} has not been fetched: `remint run` fetches it, dvc by itself does not")
        return _only_file(fetched)
    path = root / local(source)
    if path.is_dir() or path.is_file():
        return path if source.startswith(IDX) else _only_file(path)
    if path.suffix in (*FILES, *TABLES) or archive.is_archive(path):
        raise DataError(f"there is no file {path}: put it there or correct the path")
    if source.startswith(IDX) or source.endswith("/"):
        raise DataError(f"there is no folder {path}: put it there or correct the path")
    near = difflib.get_close_matches(source, [*shipped.IMAGES, *shipped.TABLES], n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there is no such file or folder; known are {KNOWN}"
    raise SettingsError(f"params.yaml: datasets.{name}.source: unknown source '{source}': {hint}")


def local(source: str) -> str:
    """The path in a source that is on this machine."""
    return source.removeprefix(IDX)


def _only_file(path: Path) -> Path:
    """A folder that holds nothing but one file which is a source by itself means that file."""
    if not path.is_dir():
        return path
    found = folder.visible(path)
    alone = len(found) == 1 and (found[0].suffix in (*FILES, *TABLES) or archive.is_archive(found[0]))
    if not alone:
        return path
    folder.regular(found[0], path)
    return found[0]


def _table(
    name: str, settings: DatasetSettings, source: Path | str, known: Schema | None
) -> tuple[DataSpec, Conform, dict[str, str]]:
    from remint.data import tables  # and pyarrow, which images need not wait for

    if source in shipped.IMAGES or (isinstance(source, Path) and source.suffix not in TABLES):
        found = f": it holds {len(folder.visible(source))} files" if isinstance(source, Path) and source.is_dir() else ""
        raise DataError(f"{source} is not a table{found}: expected one file.csv or file.parquet, or {', '.join(shipped.TABLES)}")
    table = tables.read(name, settings, source, known.spec if known else None)
    spec = known.spec if known else tables.learn(name, settings, table)
    return spec, lambda spec: tables.conform(table, spec), {}


def _images(name: str, settings: DatasetSettings, source: Path | str) -> tuple[DataSpec, Conform, dict[str, str]]:
    raw = _raw(settings, source)
    x_NCHW = images.checked(name, settings, raw)
    y_N = None if raw.y is None else images.check_labels(raw, len(x_NCHW))
    spec = images.learn(settings, raw, x_NCHW, y_N)
    return spec, lambda known: images.conform(raw, x_NCHW, y_N, spec, known), dict(raw.set_aside)


def _raw(settings: DatasetSettings, source: Path | str) -> Raw:
    if isinstance(source, str):
        if source in shipped.TABLES:
            raise DataError(f"{source} is a table: set kind: table")
        return shipped.IMAGES[source]()
    if source.suffix in TABLES:
        raise DataError(f"{source} is a table: set kind: table")
    if source.suffix in FILES and source.is_file():
        return FILES[source.suffix](source)
    if settings.source.startswith(IDX) or (source.is_dir() and idx.holds_idx(source)):
        return idx.read(source)
    from remint.data import pictures

    if source.is_dir():
        return pictures.read(str(source), folder.files(source), settings)
    if archive.is_archive(source):
        return pictures.read(str(source), archive.files(source), settings)
    raise DataError(f"{source} is of no known kind: known are {KNOWN}")


def _fitting(stands: Schema, settings: DatasetSettings, conform: Conform) -> dict[str, Array]:
    """The arrays as the schema has them. Raises DataError, with a line for each difference, where they do not fit."""
    arrays, differences = conform(stands.spec)
    if differences:
        raise schema.mismatch_error(stands, settings, differences)
    if stands.settings["source"] != settings.source:
        emit("schema", learnt_from=stands.settings["source"], fits=settings.source)
    return arrays
