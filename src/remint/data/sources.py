"""Dataset import: read a source, compare it with its schema, write one snapshot. Images are read in blocks (blocks.py).

    snapshot(name, settings, root, out) -> out/
        data.npz          x  images uint8 (N, C, H, W), values 0 .. levels-1; a table's columns float64 (N, D), see tables.py
                          y  int64 (N,), class numbers from 0; absent where the source has no labels
                          group  uint64 (N,), hash of each example's group; absent without split.group
                          time  datetime64[us] (N,), or float64 of a column of numbers; absent without split.time
                          held_out  bool (N,), whether an example is held out; absent if shares or times decide that
        x-00000.npy ..    x in shards, if it is large: see snapshots.py
        schema.json       schema.Schema of x and y
        limits.json       limits.Limits between the splits; absent without split.time and split.stratify
        set_aside.json    unusable image file -> reason; absent if there are none

The same source gives the same bytes, so that DVC sees a change only if the data changed.

Shapes: N examples, C channels, H height, W width, D columns.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from remint.data import archive, folder, formats, idx, images, numpy_files, parts, schema, shipped, snapshots, splits
from remint.data.blocks import Blocks, Spool, concatenate, memory_limit
from remint.data.identity import canonical_examples, choose_rule
from remint.data.limits import LIMITS, Limits, keep_limits, shown
from remint.data.schema import SCHEMA, Schema
from remint.data.snapshots import new_folder
from remint.data.values import Raw
from remint.errors import DataError, SettingsError
from remint.records import DataSpec
from remint.runtime.events import emit
from remint.settings.dataset import DatasetSettings
from remint.settings.split import SplitSettings

SET_ASIDE = "set_aside.json"
REMOTE = "s3://"  # storage.py fetches such a source before the import
IDX = "idx:"

FILES: dict[str, Callable[[Path, Spool], Raw]] = {".npy": numpy_files.read_npy, ".npz": numpy_files.read_npz}
TABLES = (".csv", ".parquet")
KNOWN_SOURCES = (
    "a folder of images, file.npy, file.npz, file.zip, file.tar, file.tar.gz, file.csv, file.parquet, idx:FOLDER, "
    f"s3://bucket/prefix, {', '.join([*shipped.IMAGES, *shipped.TABLES])}"
)

Arrays = dict[str, Any]  # by name: x as Blocks, the others as arrays


@dataclass(frozen=True)
class Content:
    """Content of a source: its spec, and the function that gives x and y in the form of a schema, with the differences."""

    spec: DataSpec
    conform: Callable[[DataSpec], tuple[Arrays, list[str]]]
    dividing: Arrays  # the other arrays of the snapshot: they decide the splits
    decisions: dict[str, str] = field(default_factory=dict)  # that are not obvious, by a table's column, or by subject
    set_aside: dict[str, str] = field(default_factory=dict)  # unusable image file -> reason


def snapshot(
    name: str,
    settings: DatasetSettings,
    root: Path,
    out: Path,
    *,
    fallback: Path | None = None,
    fetched: Path | None = None,
    schemas: Path | None = None,
) -> None:
    """Read the sources of dataset ``name`` (relative paths below ``root``) and write the snapshot to ``out``.

    ``fallback``: root of a source that is not below ``root``. ``fetched``: folder with the local copy of an s3:// source;
    that of a held-out source is beside it (``fetched_name``). ``schemas``: folder of the stored schemas; without it each
    import learns a new one.

    Raises SettingsError if a source is unknown, or if REMINT_MEMORY is no size or too small. Raises DataError if a source is
    missing, empty or damaged, has another shape or other levels than params.yaml, or does not fit its schema. Raises
    StorageError if the disk is full.
    """
    memory_limit()  # a wrong REMINT_MEMORY is refused before anything is read
    known = schema.read_schema(schemas, name, settings)
    with new_folder(out) as folder, Spool(out.parent) as spool:

        def read(key: str, settings: DatasetSettings, known: Schema | None) -> Content:
            try:
                here = root if fallback is None or (root / local_path(settings.source)).exists() else fallback
                copy = fetched.with_name(fetched_name(fetched.name, key)) if fetched else None
                source = locate_source(name, settings, here, copy, key)
                if isinstance(source, Path) and source.is_file():
                    formats.check_name(source)
                return (_table if settings.kind == "table" else _images)(name, settings, source, known, spool)
            except DataError as error:  # the reader names the file; add the settings key
                if "params.yaml:" in str(error):
                    raise
                raise DataError(f"params.yaml: datasets.{name}.{key}: {error}") from error

        _write(name, settings, read, known, schemas, folder)


def _write(
    name: str,
    settings: DatasetSettings,
    read: Callable[[str, DatasetSettings, Schema | None], Content],
    known: Schema | None,
    schemas: Path | None,
    out: Path,
) -> None:
    """Write the files of a snapshot. ``read`` returns the content of the source at a settings key."""
    content = read("source", settings, known)
    stored = known or schema.make_schema(name, settings, content.spec)
    arrays = _arrays_in_schema(stored, settings, content)
    if known is None:
        spec = content.spec
        rule = choose_rule(canonical_examples(arrays["x"], spec)) if spec.is_table else stored.split_by
        stored = stored.model_copy(update={"split_by": rule, "decisions": content.decisions})
    if schemas is not None and known is None:
        stored = schema.save_schema(stored, schemas)
        arrays = _arrays_in_schema(stored, settings, content)  # two first imports may run at once: use the stored schema
    said = {
        subject: decision for subject, decision in stored.decisions.items() if stored.spec.is_table or subject != images.RANGE
    }
    for subject, decision in said.items():
        emit("decision", subject=f"column {subject}" if stored.spec.is_table else subject, decision=decision)
    set_aside = content.set_aside
    if settings.split.source is not None:
        whole = SplitSettings.model_construct(group=settings.split.group, validation=0.0, held_out=0.0)
        apart = settings.model_copy(update={"source": settings.split.source, "split": whole})
        content = read("split.held_out", apart, stored)
        arrays = _join(name, stored, arrays, apart.source, content)
        set_aside = set_aside | {f"{apart.source}: {file}": reason for file, reason in content.set_aside.items()}
    limits = _limits(name, settings.split, stored, arrays, schemas)
    snapshots.write_arrays(out, arrays)
    stored.write(out / SCHEMA)
    if limits is not None:
        limits.write(out / LIMITS)
    if set_aside:
        (out / SET_ASIDE).write_text(json.dumps(set_aside, indent=1) + "\n")


def _limits(name: str, split: SplitSettings, stored: Schema, arrays: Arrays, schemas: Path | None) -> Limits | None:
    """Return the limits between the splits, as earlier imports have kept them; None if the shares alone are the limits."""
    found = splits.learn_limits(name, split, stored, arrays)
    if found is None or schemas is None:
        return found
    kept = keep_limits(found, stored, schemas)
    for key, start in kept.held_out_from.items():
        if start != found.held_out_from[key]:
            emit("start_kept", start=shown(start), asked=shown(found.held_out_from[key]))
    return kept


def _join(name: str, stored: Schema, arrays: Arrays, source: str, apart: Content) -> Arrays:
    """Return the arrays with the examples of the held-out source behind them, and a mask of these, held_out, bool (N,)."""
    others, differences = apart.conform(stored.spec)
    if differences:
        raise DataError(
            f"params.yaml: datasets.{name}.split.held_out: {source} does not fit schema {stored.version}, as "
            f"{stored.settings['source']} does: {'; '.join(differences)}: repair it"
        )
    others |= apart.dividing
    joined: Arrays = {key: np.concatenate([array, others[key]]) for key, array in arrays.items() if key != "x"}
    joined = {"x": concatenate([Blocks.of(each["x"]) for each in (arrays, others)])} | joined
    return joined | {"held_out": np.arange(len(joined["x"])) >= len(arrays["x"])}


def fetched_name(name: str, key: str) -> str:
    """Return the folder below HOME/fetched for the source at ``key`` of a dataset."""
    return name if key == "source" else f"{name}+{key.rpartition('.')[2]}"


def locate_source(name: str, settings: DatasetSettings, root: Path, fetched: Path | None, key: str = "source") -> Path | str:
    """Return the source's file or folder, or its name if scikit-learn ships it. ``key``: of the source, for errors."""
    source = settings.source
    if source in (*shipped.IMAGES, *shipped.TABLES):
        return source
    if source.startswith(REMOTE):
        if fetched is None or not fetched.is_dir():
            raise DataError(f"{source} was not fetched: use `remint run`, which fetches it; dvc alone does not")
        return _only_file(fetched)
    path = root / local_path(source)
    if path.is_dir() or path.is_file():
        return path if source.startswith(IDX) else _only_file(path)
    if path.suffix.lower() in (*FILES, *TABLES) or archive.is_archive(path):
        raise DataError(f"there is no file {path}: put it there or correct the path")
    if source.startswith(IDX) or source.endswith("/"):
        raise DataError(f"there is no folder {path}: put it there or correct the path")
    near = difflib.get_close_matches(source, [*shipped.IMAGES, *shipped.TABLES], n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"no file or folder has this name; expected {KNOWN_SOURCES}"
    raise SettingsError(f"params.yaml: datasets.{name}.{key}: unknown source '{source}': {hint}")


def local_sources(named: Mapping[str, str]) -> list[Path]:
    """Return the files and folders of all local sources: raw data, which never enter git. ``named``: sources by their key.

    Raises SettingsError if a source is the repository itself.
    """
    found = []
    for key, source in named.items():
        if source.startswith(REMOTE) or source in (*shipped.IMAGES, *shipped.TABLES):
            continue
        path = Path(local_path(source))
        if not path.is_absolute() and os.path.normpath(path) == ".":
            raise SettingsError(
                f"params.yaml: {key}: '{source}' is the repository itself: move the data into a folder "
                "of its own, such as data/, and name that"
            )
        found.append(path)
    return found


def local_path(source: str) -> str:
    """Return the path of a local source."""
    return source.removeprefix(IDX)


def _only_file(path: Path) -> Path:
    """Return the only file of a folder if it is a complete source, else the path itself."""
    if not path.is_dir():
        return path
    found = folder.visible_entries(path)
    is_source = len(found) == 1 and (found[0].suffix.lower() in (*FILES, *TABLES) or archive.is_archive(found[0]))
    if not is_source:
        return path
    folder.check_regular(found[0], path)
    return found[0]


def _table(name: str, settings: DatasetSettings, source: Path | str, known: Schema | None, spool: Spool) -> Content:
    from remint.data import dividing, tables  # late import: images do not need pyarrow

    if source in shipped.IMAGES or (isinstance(source, Path) and source.suffix.lower() not in TABLES):
        found = f": it holds {len(folder.visible_entries(source))} files" if isinstance(source, Path) and source.is_dir() else ""
        raise DataError(f"{source} is not a table{found}: expected one file.csv or file.parquet, or {', '.join(shipped.TABLES)}")
    table = tables.read(name, settings, source, known.spec if known else None, spool)
    spec = known.spec if known else tables.learn(name, settings, table)
    decisions = {name: reason.text for name, reason in table.reasons.items()}
    divided_by = dividing.arrays(name, settings, table.where, table.dividing)
    return Content(spec, lambda spec: tables.conform(table, spec), divided_by, decisions)


def _images(name: str, settings: DatasetSettings, source: Path | str, known: Schema | None, spool: Spool) -> Content:
    before = known.spec if known and not known.spec.is_table else None
    raw = read_images(settings, source, before, spool)
    found = images.check(name, settings, raw, before)
    dividing = {}
    if settings.split.group is not None:
        dividing["group"] = parts.groups(name, settings.split, settings.split.group, raw)
    if settings.split.part is not None:
        dividing["held_out"] = parts.part(name, settings.split.part, raw)
    decisions, set_aside = dict(found.decisions), dict(raw.set_aside)
    return Content(found.spec, lambda spec: images.conform(found, spec), dividing, decisions, set_aside)


def read_images(
    settings: DatasetSettings, source: Path | str, known: DataSpec | None, spool: Spool, only: tuple[int, ...] | None = None
) -> Raw:
    """Read images as they are. ``known``: the spec in the schema. ``only``: set aside image files of another shape (C, H, W)."""
    if isinstance(source, str):
        if source in shipped.TABLES:
            raise DataError(f"{source} is a table: set kind: table")
        return shipped.IMAGES[source]()
    if source.suffix.lower() in TABLES:
        raise DataError(f"{source} is a table: set kind: table")
    if source.suffix.lower() in FILES and source.is_file():
        return FILES[source.suffix.lower()](source, spool)
    if settings.source.startswith(IDX) or (source.is_dir() and idx.has_idx_files(source)):
        return idx.read(source, spool)
    from remint.data import pictures

    if source.is_dir():
        return pictures.read(str(source), folder.Walk(partial(folder.files, source)), settings, spool, known, only)
    if archive.is_archive(source):
        return pictures.read(str(source), folder.Walk(partial(archive.files, source)), settings, spool, known, only)
    raise DataError(f"{source} is not a known kind of source: expected {KNOWN_SOURCES}")


def _arrays_in_schema(stored: Schema, settings: DatasetSettings, content: Content) -> Arrays:
    """Return the arrays in the form of the schema. Raises DataError, with a line for each difference, if they do not fit."""
    arrays, differences = content.conform(stored.spec)
    if differences:
        raise schema.mismatch_error(stored, settings, differences)
    if stored.settings["source"] != settings.source:
        emit("schema", learnt_from=stored.settings["source"], fits=settings.source)
    return arrays | content.dividing
