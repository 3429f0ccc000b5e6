"""Dataset schema: learnt at the first import and compared with every later one.

    REMINT_HOME/schemas/NAME-VERSION.json    written once; VERSION is datasets.NAME.schema_version of params.yaml
    outs/raw/NAME/schema.json                the copy that goes with each snapshot, and is versioned with it

It contains the mean and scale of a table's columns, so that likelihoods stay comparable across versions of the data.
Data that do not fit are refused with a list of the differences. Raising ``schema_version`` learns a new schema.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from remint.errors import DataError
from remint.records import DataSpec, Record
from remint.settings.dataset import DatasetSettings

SCHEMA = "schema.json"
SNAPSHOT = "data.npz"  # the arrays that the schema describes
SETTINGS_OUTSIDE_SCHEMA = {"split", "undecodable", "schema_version"}  # settings that change no column


class Schema(Record):
    """One learnt schema: the spec of the data and the settings of the import."""

    dataset: str
    version: int
    settings: dict[str, Any]
    spec: DataSpec
    decisions: dict[str, str] = {}  # about columns, image values and labels, where not obvious, with their reason
    split_by: Literal["content", "occurrence"] = "content"  # chosen at the first import, so that appended data move no example


def make_schema(name: str, settings: DatasetSettings, spec: DataSpec) -> Schema:
    compared = settings.model_dump(mode="json", exclude=SETTINGS_OUTSIDE_SCHEMA)
    return Schema(dataset=name, version=settings.schema_version, settings=compared, spec=spec)


def schema_path(folder: Path, name: str, version: int) -> Path:
    return folder / f"{name}-{version}.json"


def read_schema(folder: Path | None, name: str, settings: DatasetSettings) -> Schema | None:
    """Return the schema of an earlier import; None at the first import or without ``folder``.

    With ``missing: drop_rows`` no column of it may lack values, also if it was learnt from rows that did.

    Raises DataError if the schema is not readable.
    """
    if folder is None:
        return None
    path = schema_path(folder, name, settings.schema_version)
    try:
        known = Schema.read(path)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"{path} is not a schema: restore it, or remove it to learn it again at the next import") from error
    if settings.missing == "keep":
        return known
    columns = tuple(column.model_copy(update={"missing": False, "absent": 0.0}) for column in known.spec.columns)
    return known.model_copy(update={"spec": known.spec.model_copy(update={"columns": columns})})


def save_schema(schema: Schema, folder: Path) -> Schema:
    """Write a schema atomically unless one exists. Return the stored one (another process may have been first)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = schema_path(folder, schema.dataset, schema.version)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as temporary:
        schema.write(Path(temporary.name))
        os.fsync(temporary.fileno())
        try:
            os.link(temporary.name, path)  # fails if one exists
        except FileExistsError:
            return Schema.read(path)
    return schema


def mismatch_error(schema: Schema, settings: DatasetSettings, differences: list[str]) -> DataError:
    """Return the error that lists the differences and the two remedies."""
    now = make_schema(schema.dataset, settings, schema.spec).settings
    before = {key: _text(schema.settings.get(key)) for key in now}
    changed = [f"{key} was {before[key]}, is {_text(now[key])}" for key in now if _text(now[key]) != before[key]]
    key = f"datasets.{schema.dataset}"
    lines = [
        f"params.yaml: {key}: the data do not fit schema {schema.version}, learnt from {schema.settings['source']}:",
        *(f"  {difference}" for difference in differences),
        *(f"  (setting {line})" for line in changed),
        f"repair the data; if they are correct, set {key}.schema_version: {schema.version + 1} to learn a new schema",
    ]
    return DataError("\n".join(lines))


def _text(value: Any) -> str:
    return "not set" if value in (None, [], ()) else str(value)
