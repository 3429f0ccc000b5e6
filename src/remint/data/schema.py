"""What a dataset looks like, learnt at its first import and held against every later one.

    REMINT_HOME/schemas/NAME-VERSION.json    written once; VERSION is datasets.NAME.schema_version of params.yaml
    outs/raw/NAME/schema.json                the copy that goes with each snapshot, and is versioned with it

The standard form of a table's columns is part of it, so that likelihoods stay comparable over versions of the data.
What does not fit is refused with an account of each difference. Raising ``schema_version`` learns the schema anew.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remint.errors import DataError
from remint.records import DataSpec, Record
from remint.settings.recipe import DatasetSettings

SCHEMA = "schema.json"
SNAPSHOT = "data.npz"  # what it is the schema of
NOT_OF_THE_SCHEMA = {"split", "undecodable", "schema_version"}  # settings that change no column


class Schema(Record):
    """One learnt schema: what the data are, and the settings that they were read with."""

    dataset: str
    version: int
    settings: dict[str, Any]
    spec: DataSpec


def make_schema(name: str, settings: DatasetSettings, spec: DataSpec) -> Schema:
    decisive = settings.model_dump(mode="json", exclude=NOT_OF_THE_SCHEMA)
    return Schema(dataset=name, version=settings.schema_version, settings=decisive, spec=spec)


def address(folder: Path, name: str, version: int) -> Path:
    return folder / f"{name}-{version}.json"


def read_schema(folder: Path | None, name: str, settings: DatasetSettings) -> Schema | None:
    """The schema that an earlier import learnt; None where this is the first, or nothing is kept.

    Raises DataError for one that cannot be read.
    """
    if folder is None:
        return None
    path = address(folder, name, settings.schema_version)
    try:
        return Schema.read(path)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"{path} is not a schema: restore it, or remove it, and the next import learns it anew") from error


def save_schema(schema: Schema, folder: Path) -> Schema:
    """Writes a schema, whole or not at all, and never over another: returns the one that stands (somebody was first)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = address(folder, schema.dataset, schema.version)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as temporary:
        schema.write(Path(temporary.name))
        os.fsync(temporary.fileno())
        try:
            os.link(temporary.name, path)  # fails where there is one
        except FileExistsError:
            return Schema.read(path)
    return schema


def mismatch_error(schema: Schema, settings: DatasetSettings, differences: list[str]) -> DataError:
    """The account of what does not fit, and the two ways out."""
    now = make_schema(schema.dataset, settings, schema.spec).settings
    before = {key: _text(schema.settings.get(key)) for key in now}
    changed = [f"{key} was {before[key]}, is {_text(now[key])}" for key in now if _text(now[key]) != before[key]]
    key = f"datasets.{schema.dataset}"
    lines = [
        f"params.yaml: {key}: the data do not fit schema {schema.version}, learnt from {schema.settings['source']}:",
        *(f"  {difference}" for difference in differences),
        *(f"  (setting {line})" for line in changed),
        f"repair them; or, if they are right, set {key}.schema_version: {schema.version + 1} to learn the schema anew",
    ]
    return DataError("\n".join(lines))


def _text(value: Any) -> str:
    return "not set" if value in (None, [], ()) else str(value)
