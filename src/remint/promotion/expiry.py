"""Expiry of a requested approval: the data changed since the gate judged.

A changed champion is not checked here: promotion is a compare-and-swap on the champion (remint.promotion.decide).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from remint.data import schema, sources
from remint.errors import DataError, NotFoundError, UserError
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.runtime.manifest import sha256_file
from remint.settings.params import load_params
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_tracking

SMALL_SOURCE = 16 * 2**20  # bytes; a local source up to this size is read again to detect a change


def data_changed(home: Home, version: ModelVersion, rows: list[LedgerRow]) -> str | None:
    """Return a clause: how the data changed since approval of a version was requested. None: no known change.

    ``rows``: those about the version. Without a request for approval nothing can expire. Known are the data of versions
    that were registered or judged since, and a small source on this machine.
    """
    asked = next((row for row in reversed(rows) if row.evidence), None)
    if asked is None or asked.action != "awaiting_approval":
        return None
    store, last = open_tracking(home), open_ledger(home).last(version.name)
    assert last is not None, "there is a row that requested approval"
    since = store.versions(version.name, newest=1)[:1]  # [:1]: versions with an alias follow
    if last != asked:
        with suppress(NotFoundError):  # that version may have been deleted
            since.append(store.version(f"{version.name}/{last.version}"))
    for other in since:
        if other.dataset != version.dataset:
            return f"{other.ref} has other data since then (dataset version {other.dataset[:10]}, not {version.dataset[:10]})"
    return _source_changed(home, version)


def _source_changed(home: Home, version: ModelVersion) -> str | None:
    """Return a clause if small sources on this machine differ from the snapshot that the version was trained on."""
    origin = version.tags.origin
    try:
        settings = load_params(home.repository).datasets.get(origin.name)
    except UserError:  # broken settings do not show a change of the data
        return None
    if settings is None or not all(_is_small(home.repository / sources.local_path(each)) for each in settings.sources.values()):
        return None
    schemas = home.path / "schemas"
    kept = schemas if schema.schema_path(schemas, origin.name, settings.schema_version).exists() else None
    with scratch.folder() as folder:
        try:
            sources.snapshot(origin.name, settings, home.repository, folder / "raw", schemas=kept)
        except DataError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            return f"its data can no longer be read: {' '.join(lines[: 2 if lines[0].endswith(':') else 1])}"
        same = sha256_file(folder / "raw" / schema.SNAPSHOT) == origin.raw_sha256
    return None if same else f"{' or '.join(settings.sources.values())} changed since then"


def _is_small(path: Path) -> bool:
    """Return whether a source is a small file or folder on this machine."""
    if path.is_file():
        return path.stat().st_size <= SMALL_SOURCE
    return path.is_dir() and sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) <= SMALL_SOURCE
