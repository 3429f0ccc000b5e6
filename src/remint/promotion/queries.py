"""What people ask of the registry and the ledger: what is there, why, what happened, and draw from it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, LedgerError, NotFoundError, SettingsError
from remint.promotion import kept_decisions
from remint.promotion.decision import Decision
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.records import Drift, MetricValue, Record
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.settings.recipe import did_you_mean
from remint.stores.mlflow import ModelVersion
from remint.stores.open import fetch_bundle, open_ledger, open_tracking


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
    verdict: str  # action of the newest row about it, "" where there is none
    metrics: dict[str, MetricValue]  # as it was registered

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
    """The ledger's rows of one model, and what is wrong with them."""

    model: str
    rows: tuple[dict[str, Any], ...]  # as they are stored, oldest first: a damaged one is no LedgerRow
    findings: tuple[str, ...]  # of the chain, one line each; none: it is as it was written
    kept_hashes: int  # hashes of rows that MLflow keeps, where these were held against it


def models(home: Home, name: str | None, newest: int | None = None) -> list[VersionEntry]:
    """One entry a version, newest first: all, or of each model the ``newest`` ones and those that have an alias.

    Raises NotFoundError for a name that nothing is registered under.
    """
    store = open_tracking(home)
    names = store.names()
    if name is not None:
        if name not in names:
            raise NotFoundError(
                did_you_mean(f"model '{name}'", name, names)
                if names
                else f"unknown model '{name}': nothing is registered yet; remint run {name}"
            )
        names = [name]
    for each in names:
        sync_mlflow_to_ledger(home, each)
    return [VersionEntry(**VersionEntry.fields_of(version)) for each in names for version in store.versions(each, newest)]


def history(home: Home, name: str, *, verify: bool = False) -> History:
    """The ledger's rows of one model, oldest first, and what is wrong with the chain (nothing, as it should be).

    ``verify``: the hashes that MLflow keeps of rows (remint.promotion.projection) are held against it, too, so that a ledger
    that was cut short or written anew shows; and so are the decisions that are kept with the versions.
    """
    book = open_ledger(home)
    rows, known = book.raw(name), _kept_hashes(home, name) if verify else {}
    if not rows and not known:
        others = book.models()
        raise NotFoundError(
            did_you_mean(f"model '{name}'", name, others)
            if others
            else f"the ledger is empty: remint run {name} writes its first row"
        )
    findings = book.verify(name, known) + (kept_decisions.differences(home, name, rows) if verify else [])
    with suppress(LedgerError):  # a damaged row: the findings name it
        sync_mlflow_to_ledger(home, name)
    return History(model=name, rows=tuple(rows), findings=tuple(findings), kept_hashes=len(known))


def _kept_hashes(home: Home, name: str) -> dict[str, str]:
    """Each hash of a ledger row that MLflow keeps of a model, and what carries it."""
    store = open_tracking(home)
    sequence, _, head = store.standing(name)[1].partition(" ")
    known = {head: f"row {sequence}, the newest that the aliases of {name} followed,"} if head else {}
    for version in reversed(store.versions(name)):
        kept = version.tags.ledger_hash
        if kept:
            known[kept] = f"row {version.tags.ledger_row or '?'}, which {version.ref} carries the hash of,"
    return known


def kept_decision(home: Home, version: ModelVersion) -> Decision | None:
    """What the gate said last of a version, with every number; None where nothing is kept."""
    text = _kept(home, version, kept_decisions.DECISION)
    return Decision.model_validate_json(text) if text else None


def kept_drift(home: Home, version: ModelVersion) -> Drift | None:
    """What changed in the data before a version; None where nothing did, or nothing is kept."""
    text = _kept(home, version, "drift.json")
    return Drift.model_validate_json(text) if text else None


def _kept(home: Home, version: ModelVersion, name: str) -> str | None:
    """The text of a file of a version's decision, from this machine or from MLflow; None where there is none."""
    path = home.report(version.name, version.version) / name
    with scratch.folder() as folder, suppress(IntegrityError):
        if not path.exists():
            path = open_tracking(home).attachment(version, name, folder)
        return path.read_text()
    return None


def sample(home: Home, ref: str, count: int, seed: int, of_class: str | None, output: Path) -> dict[str, Any]:
    """Draws ``count`` samples, of one class where it is named, and writes them.

    Raises SettingsError for a file that is none of .png and .npy (images) or .csv (a table), and for an unknown class.
    """
    if output.suffix not in (".png", ".npy", ".csv"):
        raise SettingsError(
            f"-o {output}: expected a name that ends in .png (a grid), .npy (uint8, N x C x H x W) or, for a table, .csv"
        )
    if not output.absolute().parent.is_dir():
        raise SettingsError(f"-o {output}: the folder {output.absolute().parent} does not exist")
    version = current_version(home, ref)
    folder = fetch_bundle(home, version)

    import numpy as np

    from remint.evaluation import plots
    from remint.serving.model import load, write_csv

    model = load(folder)
    if model.spec.is_table != (output.suffix == ".csv"):
        kind, suffix = ("a table", ".csv") if model.spec.is_table else ("images", ".png or .npy")
        raise SettingsError(f"-o {output}: {version.ref} draws {kind}: give a name that ends in {suffix}")
    x_NX = model.sample(count, seed, None if of_class is None else model.class_named(of_class))
    try:
        if output.suffix == ".csv":
            write_csv(output, model.table(x_NX))
        elif output.suffix == ".npy":
            np.save(output, x_NX, allow_pickle=False)
        else:
            named = "" if of_class is None else f", class {of_class}"
            plots.sample_grid(output, x_NX, model.spec.levels, title=f"{version.ref}{named}, seed {seed}")
    except OSError as error:
        raise SettingsError(f"-o {output}: it cannot be written: {error.strerror or error}") from error
    return {
        "model": version.ref,
        "count": count,
        "seed": seed,
        "class": of_class,
        "path": str(output),
        "weights_sha256": version.weights_sha256,
    }
