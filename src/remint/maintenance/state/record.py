"""Records of an exported state, and of its import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from remint.errors import IntegrityError, NotFoundError
from remint.maintenance.audit.fault import Finding
from remint.records import Record
from remint.runtime import manifest

STATE, LIST, FILES = "state.json", "files.jsonl", "files"
LEDGER, MLFLOW = "ledger.db", "mlflow.db"
UNFINISHED = "unfinished"  # file of a folder that an export began
FORMAT = 1


class State(Record):
    """An exported state."""

    format: int = FORMAT
    remint: str  # version that wrote it
    at: str  # ISO 8601, UTC
    roots: dict[str, str]  # folder below files/ of the files at each address in MLflow
    sha256: dict[str, str]  # of ledger.db, mlflow.db and files.jsonl
    models: dict[str, int]  # versions of each model
    rows: int  # of the ledger
    files: int
    bytes: int  # in them


class StoredFile(Record):
    """A file below files/."""

    name: str
    size: int
    sha256: str


class Imported(Record):
    """Result of an import. 0 where all was there already."""

    ledger: int  # rows that were written
    mlflow: int
    files: int
    models: dict[str, int]  # versions of each model
    findings: tuple[Finding, ...]  # of the audit, and of the ledger's verification


def read_state(folder: Path) -> State:
    """Return the state in a folder, after its databases and its list match it.

    Raises NotFoundError if there is no whole state, IntegrityError if it is damaged or of a newer remint.
    """
    path = folder / STATE
    if not path.is_file():
        why = "the export did not end: run it again" if (folder / UNFINISHED).exists() else "remint export-state writes one"
        raise NotFoundError(f"{folder} holds no whole state: {why}")
    try:
        state = State.read(path)
    except (ValidationError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: export the state again, or install the remint that wrote it") from error
    if state.format != FORMAT:
        raise IntegrityError(f"{path} has format {state.format}, this remint supports {FORMAT}: install the remint that wrote it")
    for name, sha256 in state.sha256.items():
        if not (folder / name).is_file() or manifest.sha256_file(folder / name) != sha256:
            raise IntegrityError(f"{folder / name} is damaged or missing: its SHA-256 is not the one in {STATE}. Export again")
    return state


def listed(folder: Path) -> Iterator[StoredFile]:
    """Yield the files of a state."""
    with (folder / LIST).open() as lines:
        for line in lines:
            yield StoredFile.model_validate(json.loads(line))
