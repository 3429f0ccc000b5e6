"""Import of a state into the stores that the environment names. It can be repeated: what is there already is compared and kept.

The files come first, then MLflow's rows in one transaction, and the ledger's rows in one transaction last. So an import that
was killed left no champion whose files are missing, and the next one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from remint.errors import IntegrityError, UserError
from remint.maintenance import audit
from remint.maintenance.audit.fault import Finding
from remint.maintenance.state.record import FILES, LEDGER, MLFLOW, Imported, State, StoredFile, listed, read_state
from remint.promotion import queries
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.runtime import jobs, manifest, scratch
from remint.runtime.addresses import sqlite_address
from remint.runtime.home import Home
from remint.stores.files import Files, open_files
from remint.stores.ledger import moving as ledger
from remint.stores.mlflow import moving as mlflow
from remint.stores.open import open_ledger, open_tracking

AT_ONCE = 8  # files that are written or compared at the same time
TOLD = 500  # files between two progress messages

Say = Callable[[str], None]


def import_state(home: Home, folder: Path, say: Say) -> Imported:
    """Copy a state into the ledger, MLflow's database and the place of its files that this home names, and verify all.

    Raises NotFoundError if the folder holds no whole state, IntegrityError if it is damaged, UserError if a store has other
    content: nothing is written then.
    """
    mlflow.check_database(home.tracking_uri)
    state = read_state(folder)
    lock = home.lock("registry")
    old_ledger, old_mlflow = sqlite_address(folder / LEDGER), sqlite_address(folder / MLFLOW)
    roots = {address: f"{home.artifacts}/{name}" for address, name in state.roots.items()}
    with jobs.collecting(home):
        say("looking at the stores")
        ledger.has_copy(old_ledger, home.ledger_url)
        mlflow.has_copy(old_mlflow, home.tracking_uri, lock, roots)
        files = _bring(folder, open_files("REMINT_ARTIFACTS", home.artifacts), home.artifacts, state, say)
        say("copying MLflow's database")
        registry = mlflow.copy(old_mlflow, home.tracking_uri, lock, roots)
        say("copying the ledger")
        rows = ledger.copy(old_ledger, home.ledger_url)
    say("verifying all of it")
    return Imported(
        ledger=rows, mlflow=registry, files=files, models=_versions(home, state), findings=tuple(_findings(home, say))
    )


def _bring(folder: Path, to: Files, address: str, state: State, say: Say) -> int:
    """Write the files that are missing, each read back and compared. Return their number. No file is overwritten."""
    written = done = 0
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="import") as pool:
        for new in pool.map(lambda each: _bring_one(folder / FILES / each.name, each, to, address), listed(folder)):
            written, done = written + new, done + 1
            if done % TOLD == 0:
                say(f"{done:,} of {state.files:,} files are there")
    return written


def _bring_one(path: Path, file: StoredFile, to: Files, address: str) -> bool:
    """Write one file unless it is there. Return whether it was missing."""
    there = _sha256(to, file)
    if there == file.sha256:
        return False
    if there is not None:
        raise UserError(f"{address}/{file.name} is there with other bytes: it was not touched. Name an empty place for the files")
    if not path.is_file() or manifest.sha256_file(path) != file.sha256:
        raise IntegrityError(f"{path} is damaged or missing: export the state again")
    to.put(path, file.name)
    if _sha256(to, file) != file.sha256:
        raise IntegrityError(f"{address}/{file.name} was read back with other bytes: run the import again")
    return True


def _sha256(files: Files, file: StoredFile) -> str | None:
    """Return the digest of a file at its new place; "" if it is larger, None if it is missing."""
    with scratch.folder() as temporary:
        try:
            found = files.fetch(file.name, temporary / "file", file.size)
        except IntegrityError:
            return ""
        return None if found is None else manifest.sha256_file(temporary / "file")


def _versions(home: Home, state: State) -> dict[str, int]:
    """Let MLflow follow the ledger, and count the versions. Raises IntegrityError if a model has not as many as in the state."""
    store = open_tracking(home)
    for name in state.models:
        sync_mlflow_to_ledger(home, name)
    found = {name: len(store.versions(name)) for name in state.models}
    if found != state.models:
        raise IntegrityError(f"the registry has {found} versions, the state {state.models}: run the import again")
    return found


def _findings(home: Home, say: Say) -> Iterator[Finding]:
    for name in open_ledger(home).models():
        for line in queries.history(home, name, verify=True).findings:
            yield Finding(kind="ledger", thing=name, what=line, risk="", repair="Export the state again.", safe=False)
    yield from audit.run_audit(home, say=say).findings
