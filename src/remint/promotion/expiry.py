"""When an approval that was asked for is no longer the question: the data changed since the gate judged.

A change of the champion needs nothing of this: promotion is a compare-and-swap on it (remint.promotion.decide).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from remint.data import schema, sources
from remint.errors import DataError, NotFoundError, UserError
from remint.records import LedgerRow
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.runtime.manifest import sha256_file
from remint.settings.params import load_params
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_tracking

CHEAP = 16 * 2**20  # bytes of a local source that are read again to see whether it changed


def data_changed(home: Home, version: ModelVersion, rows: list[LedgerRow]) -> str | None:
    """What changed in the data since the approval of a version was asked for, in a clause; None: nothing that is known.

    ``rows``: those about the version. A version that the gate did not leave to a person has no approval that could expire.
    What is known: the data of versions that were registered or judged since, and a small source on this machine.
    """
    asked = next((row for row in reversed(rows) if row.evidence), None)
    if asked is None or asked.action != "awaiting_approval":
        return None
    store, last = open_tracking(home), open_ledger(home).last(version.name)
    assert last is not None, "there is a row that asked for approval"
    since = store.versions(version.name, newest=1)[:1]  # those with an alias follow it
    if last != asked:
        with suppress(NotFoundError):  # what was judged last may have been deleted
            since.append(store.version(f"{version.name}/{last.version}"))
    for other in since:
        if other.dataset != version.dataset:
            return f"{other.ref} is of other data since (dataset version {other.dataset[:10]}, not {version.dataset[:10]})"
    return _source_changed(home, version)


def _source_changed(home: Home, version: ModelVersion) -> str | None:
    """Whether a small source on this machine still gives the snapshot that the version was trained on."""
    origin = version.tags.origin
    try:
        settings = load_params(home.repository).datasets.get(origin.name)
    except UserError:  # settings that are broken now tell nothing of the data
        return None
    if settings is None or not _cheap(home.repository / sources.local(settings.source)):
        return None
    schemas = home.path / "schemas"
    kept = schemas if schema.address(schemas, origin.name, settings.schema_version).exists() else None
    with scratch.folder() as folder:
        try:
            sources.snapshot(origin.name, settings, home.repository, folder / "raw", schemas=kept)
        except DataError as error:
            return f"its data cannot be read any more: {str(error).splitlines()[0]}"
        same = sha256_file(folder / "raw" / schema.SNAPSHOT) == origin.raw_sha256
    return None if same else f"{settings.source} holds other data since"


def _cheap(path: Path) -> bool:
    """Whether a source is a file or folder of this machine that is read in a moment."""
    if path.is_file():
        return path.stat().st_size <= CHEAP
    return path.is_dir() and sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) <= CHEAP
