"""Kept decisions, compared with the digests in the ledger.

A row of the ledger carries the digest of its Decision. The decision itself is a file, decision.json, in the version's report
on this machine and with the version's run in MLflow. Both copies can be edited; the row cannot, without breaking the chain.
A later decision on the same version replaces the file, so each version's newest decision is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, NotFoundError, RemintError
from remint.promotion.decision import Decision
from remint.promotion.shadow_report import REPORT
from remint.records import digest
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_tracking

DECISION = "decision.json"
PENDING = "pending_decision.json"  # decision of a row that MLflow and the report do not follow yet
PARALLEL = 8  # downloads from MLflow at a time


def differences(home: Home, model: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each decision that is missing or does not match the ledger.

    ``rows``: of the ledger as they are stored. Versions that remint gc removed have no decision left: they are left out.
    """
    readable = (row for row in rows if isinstance(row["version"], int) and isinstance(row["decision"], str))
    newest = {row["version"]: row for row in readable if row["decision"]}
    gone = CollectedVersions(home.ledger_url).versions(model)
    wanted = [newest[version] for version in sorted(set(newest) - gone)]
    if not wanted:
        return []
    versions = {version.version: version for version in open_tracking(home).versions(model)}
    with ThreadPoolExecutor(PARALLEL) as pool:
        from_mlflow = list(pool.map(lambda row: _from_mlflow(home, versions.get(row["version"])), wanted))
    lines = [line for row, found in zip(wanted, from_mlflow, strict=True) for line in _problems(home, row, found)]
    away = [f"{model}: decisions in MLflow were not compared: {each}" for each in from_mlflow if isinstance(each, RemintError)]
    return [*lines, *away[:1]]


def of_row(home: Home, row: LedgerRow) -> Decision | None:
    """Return the decision whose digest a row holds, from this machine or from MLflow; None if neither has it (yet)."""
    folder = home.report(row.model, row.version)
    found = next((path for path in (folder / PENDING, folder / DECISION) if _digest(path) == row.decision), None)
    if found is not None:
        return Decision.read(found)
    with scratch.folder() as temporary, suppress(IntegrityError, NotFoundError):
        tracking = open_tracking(home)
        path = tracking.attachment(tracking.version(f"{row.model}/{row.version}"), DECISION, temporary)
        return Decision.read(path) if _digest(path) == row.decision else None
    return None


def _problems(home: Home, row: Mapping[str, Any], from_mlflow: str | RemintError | None) -> Iterator[str]:
    """Yield a line for each problem with the copies of one row's decision."""
    folder = home.report(row["model"], row["version"])
    if _digest(folder / PENDING) == row["decision"]:
        return  # the next run of the pipeline writes the copies
    here, name = _digest(folder / DECISION), f"{row['model']}: the {DECISION} of version {row['version']}"
    for place, found in (("on this machine", here), ("in MLflow", from_mlflow)):
        if isinstance(found, str) and found != row["decision"]:
            yield f"{name} {place} was changed or replaced: it does not match the digest in row {row['sequence']}"
    shadow = Decision.read(folder / DECISION).evidence.get("shadow") if here == row["decision"] else None
    if shadow is not None and _digest(folder / REPORT) not in (None, shadow):
        yield f"{name.replace(DECISION, REPORT)} on this machine was changed: its decision has another digest"
    if here is None and from_mlflow is None:
        yield f"{name}, recorded in row {row['sequence']}, is missing on this machine and in MLflow"


def _from_mlflow(home: Home, version: ModelVersion | None) -> str | RemintError | None:
    """Return the digest of MLflow's copy; None if there is none, the error if MLflow cannot be reached."""
    if version is None:
        return None
    try:
        with scratch.folder() as folder:
            return _digest(open_tracking(home).attachment(version, DECISION, folder))
    except IntegrityError:
        return None
    except RemintError as error:
        return error


def _digest(path: Path) -> str | None:
    """Return the digest of the decision in a file; None if the file is missing, "" if it is not JSON."""
    try:
        return digest(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        return ""
