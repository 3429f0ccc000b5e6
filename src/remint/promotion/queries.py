"""Queries of the registry and the ledger: versions, history and kept decisions."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from remint.errors import IntegrityError, LedgerError, NotFoundError
from remint.promotion import kept_decisions, trials
from remint.promotion.decision import Decision
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import Drift, MetricValue, Record
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.settings.base import did_you_mean
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_seen_examples, open_tracking


class VersionEntry(Record):
    """One version, as ``remint models`` lists it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    weights_sha256: str
    dataset_version: str  # digest of the DatasetVersion
    commit: str
    dirty: bool
    created: str  # ISO 8601, UTC
    verdict: str  # action of the newest ledger row about it; "": no row
    metrics: dict[str, MetricValue]  # at registration

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"

    @staticmethod
    def fields_of(version: ModelVersion) -> dict[str, Any]:
        return {
            "name": version.name,
            "version": version.version,
            "aliases": version.aliases,
            "weights_sha256": version.weights_sha256,
            "dataset_version": version.dataset,
            "commit": version.commit,
            "dirty": version.dirty,
            "created": version.created,
            "verdict": version.tags.verdict or "",
            "metrics": version.tags.measurements,
        }


class History(Record):
    """Ledger rows of one model, and the problems found in them."""

    model: str
    rows: tuple[dict[str, Any], ...]  # as stored, oldest first: a damaged row is no valid LedgerRow
    findings: tuple[str, ...]  # problems of the chain, one line each; empty: it is intact
    kept_hashes: int  # number of row hashes in MLflow that were compared with it


def models(home: Home, name: str | None, newest: int | None = None) -> list[VersionEntry]:
    """Return one entry per version, newest first. ``newest``: only so many of each model, and those with an alias.

    Raises NotFoundError if no version of ``name`` is registered.
    """
    store = open_tracking(home)
    names = store.names()
    if name is not None:
        if name not in names:
            raise NotFoundError(
                did_you_mean(f"model '{name}'", name, names)
                if names
                else f"unknown model '{name}': nothing is registered yet. Run `remint run {name}`"
            )
        names = [name]
    for each in names:
        sync_mlflow_to_ledger(home, each)
    return [VersionEntry(**VersionEntry.fields_of(version)) for each in names for version in store.versions(each, newest)]


def history(home: Home, name: str, *, verify: bool = False) -> History:
    """Return the ledger rows of one model, oldest first, and the problems of the chain.

    ``verify``: also compare it with the row hashes in MLflow (remint.promotion.projection), which shows a ledger that was
    truncated or rewritten, and with the decisions that are kept with the versions, and compute the budget of the tries again.
    Raises NotFoundError if there is no row.
    """
    book = open_ledger(home)
    rows, known = book.raw(name), _kept_hashes(home, name) if verify else {}
    if not rows and not known:
        others = book.models()
        raise NotFoundError(
            did_you_mean(f"model '{name}'", name, others)
            if others
            else f"the ledger is empty. Run `remint run {name}` to write its first row"
        )
    findings = book.verify(name, known)
    if verify:  # the ledger alone needs no MLflow, whose import takes a second
        findings += [
            *kept_decisions.differences(home, name, rows),
            *trials.faults(open_ledger(home), open_seen_examples(home), name),
        ]
        with suppress(LedgerError):  # a damaged row: the findings name it
            sync_mlflow_to_ledger(home, name)
    return History(model=name, rows=tuple(rows), findings=tuple(findings), kept_hashes=len(known))


def _kept_hashes(home: Home, name: str) -> dict[str, str]:
    """Return each hash of a ledger row in MLflow, with a description of its row and place."""
    store = open_tracking(home)
    sequence, _, head = store.aliases_and_ledger_head(name)[1].partition(" ")
    known = {head: f"row {sequence}, the newest that the aliases of {name} followed,"} if head else {}
    for version in reversed(store.versions(name)):
        kept = version.tags.ledger_hash
        if kept:
            known[kept] = f"row {version.tags.ledger_row or '?'}, whose hash is a tag of {version.ref},"
    return known


def kept_decision(home: Home, version: ModelVersion) -> Decision | None:
    """Return the gate's newest decision on a version, with every number; None if it is not kept."""
    text = _kept(home, version, kept_decisions.DECISION)
    return Decision.model_validate_json(text) if text else None


def kept_drift(home: Home, version: ModelVersion) -> Drift | None:
    """Return the drift of the data before a version; None if there is none, or it is not kept."""
    text = _kept(home, version, "drift.json")
    return Drift.model_validate_json(text) if text else None


def _kept(home: Home, version: ModelVersion, name: str) -> str | None:
    """Return the text of a file of a version's decision, from this machine or from MLflow; None if it is missing."""
    path = home.report(version.name, version.version) / name
    with scratch.folder() as folder, suppress(IntegrityError):  # neither place has it
        if not path.exists():
            path = open_tracking(home).attachment(version, name, folder)
        return path.read_text()
    return None
