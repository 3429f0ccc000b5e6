"""Openers of the stores of one home."""

from __future__ import annotations

from pathlib import Path

from remint.runtime.home import Home
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.spreads import Spreads
from remint.stores.mlflow import ModelVersion, Tracking


def open_tracking(home: Home) -> Tracking:
    return Tracking(home.tracking_uri, home.artifacts, home.lock("registry"), home.ledger_url, home.package)


def open_ledger(home: Home) -> Ledger:
    return Ledger(home.ledger_url)


def open_spreads(home: Home) -> Spreads:
    return Spreads(home.ledger_url)


def fetch_bundle(home: Home, version: ModelVersion) -> Path:
    """Return the version's bundle on this machine, fetched once and verified each time."""
    return open_tracking(home).fetch(version, home.copy(version.key))
