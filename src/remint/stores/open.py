"""Openers of the stores of one home."""

from __future__ import annotations

from pathlib import Path

from remint.errors import NotFoundError
from remint.runtime.home import Home
from remint.settings.base import did_you_mean
from remint.stores.ledger.chain import Ledger, projection
from remint.stores.ledger.drift_checks import DriftChecks
from remint.stores.ledger.seen import SeenExamples
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.ledger.shadow_counts import ShadowCountsTable
from remint.stores.ledger.spreads import Spreads
from remint.stores.mlflow import ModelVersion, Tracking


def open_tracking(home: Home) -> Tracking:
    return Tracking(home.tracking_uri, home.artifacts, home.lock("registry"), home.ledger_url, home.package)


def open_ledger(home: Home, *, make: bool = True) -> Ledger:
    return Ledger(home.ledger_url, make=make)


def open_serving_events(home: Home, *, make: bool = True) -> ServingEvents:
    return ServingEvents(home.ledger_url, make=make)


def open_drift_checks(home: Home, *, make: bool = True) -> DriftChecks:
    return DriftChecks(home.ledger_url, make=make)


def open_shadow_counts(home: Home, *, make: bool = True) -> ShadowCountsTable:
    return ShadowCountsTable(home.ledger_url, make=make)


def open_seen_examples(home: Home) -> SeenExamples:
    return SeenExamples(home.ledger_url)


def open_spreads(home: Home) -> Spreads:
    return Spreads(home.ledger_url)


def resolve(home: Home, ref: str) -> ModelVersion:
    """Return the version of NAME (its champion), NAME@alias or NAME/7 in the ledger, and write nothing.

    Raises NotFoundError, which names alternatives.
    """
    name, _, number = ref.partition("/")
    name, _, alias = name.partition("@")
    if not number:
        book = open_ledger(home, make=False)
        last, models = book.last(name), book.models()
        if last is None:
            hint = did_you_mean(f"model '{name}'", name, models) if models else f"unknown model '{name}': the ledger is empty"
            raise NotFoundError(f"{hint}; remint models lists the models")
        found = projection([last]).get(alias or "champion")
        if found is None:
            raise NotFoundError(f"{name} has no {alias or 'champion'}; remint models {name} lists its versions")
        ref = f"{name}/{found}"
    return open_tracking(home).version(ref)


def fetch_bundle(home: Home, version: ModelVersion) -> Path:
    """Return the version's bundle on this machine, fetched once and verified each time."""
    return open_tracking(home).fetch(version, home.copy(version.key))
