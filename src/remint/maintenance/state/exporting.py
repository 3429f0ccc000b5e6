"""Export of a state. It reads the stores and writes the folder; an export that was killed goes on from the copied files."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from remint.errors import Busy, IntegrityError, SettingsError
from remint.maintenance.state.record import FILES, LEDGER, LIST, MLFLOW, STATE, UNFINISHED, State, StoredFile
from remint.promotion import queries
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import canonical
from remint.runtime import jobs, manifest
from remint.runtime.addresses import local_path, sqlite_address
from remint.runtime.home import Home
from remint.stores.ledger import moving as ledger
from remint.stores.mlflow import moving as mlflow
from remint.stores.open import open_ledger, open_tracking

Say = Callable[[str], None]


def export_state(home: Home, folder: Path, say: Say) -> State:
    """Write the state of this home to a folder: a new one, or one that an earlier export wrote, which is brought up to date.

    Raises SettingsError if the folder holds other things, Busy if a job is at work here, IntegrityError if the ledger does not
    verify or a file is none of MLflow's.
    """
    mlflow.check_database(home.tracking_uri)
    _claim(folder)
    with jobs.collecting(home):  # no job begins meanwhile
        for job in jobs.alive(home):
            raise Busy(f"{job.facts.get('pipeline')} is running here (job {job.id}): wait until it ends, and stop the workers")
        models = _verified(home)
        (folder / STATE).unlink(missing_ok=True)
        roots, sources = _places(home)
        say("copying the ledger")
        _anew(folder / LEDGER, lambda path: ledger.copy(home.ledger_url, sqlite_address(path)))
        say("copying MLflow's database")
        _anew(folder / MLFLOW, lambda path: mlflow.snapshot(home.tracking_uri, path, home.lock("registry")))
        say("copying the files of the runs")
        files = list(_copied(sources, folder / FILES))
        with (folder / LIST).open("w") as lines:
            lines.writelines(f"{canonical(each.to_json())}\n" for each in files)
    state = State(
        remint=metadata.version("remint"),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        roots=roots,
        sha256={name: manifest.sha256_file(folder / name) for name in (LEDGER, MLFLOW, LIST)},
        models=models,
        rows=len(open_ledger(home).rows()),
        files=len(files),
        bytes=sum(each.size for each in files),
    )
    state.write(folder / f".{STATE}")
    (folder / f".{STATE}").rename(folder / STATE)
    (folder / UNFINISHED).unlink()
    return state


def _claim(folder: Path) -> None:
    """Make the folder, closed to other accounts. Raises SettingsError if it holds things that no export wrote."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (STATE, UNFINISHED)):
        raise SettingsError(f"{folder} holds other things: name a new folder for the state")
    (folder / UNFINISHED).touch()


def _verified(home: Home) -> dict[str, int]:
    """Let MLflow follow the ledger, and return the number of versions of each model. Raises IntegrityError for a broken chain."""
    store = open_tracking(home)
    names = sorted({*store.names(), *open_ledger(home).models()})
    for name in names:
        sync_mlflow_to_ledger(home, name)
        if open_ledger(home).last(name) is not None:
            findings = queries.history(home, name, verify=True).findings
            if findings:
                raise IntegrityError(f"the ledger of {name} does not verify, and nothing was exported: {findings[0]}")
    return {name: len(store.versions(name)) for name in names}


def _places(home: Home) -> tuple[dict[str, str], dict[str, Path]]:
    """Return the folder below files/ for each address of an experiment's files on disk, and the folders of its runs by name."""
    roots: dict[str, str] = {}
    sources: dict[str, Path] = {}
    ours = local_path(home.artifacts)
    for number, (address, runs) in mlflow.locations(home.tracking_uri, home.lock("registry")).items():
        place = local_path(address)
        if place is None:
            continue  # on S3: these files stay where they are
        inside = ours is not None and place.is_relative_to(ours) and place != ours
        name = place.relative_to(ours).as_posix() if ours is not None and inside else f"elsewhere/{number}"
        roots[address] = quote(name)
        sources |= {f"{name}/{run}": place / run for run in runs}
    return roots, sources


def _anew(path: Path, copy: Callable[[Path], object]) -> None:
    """Write a database under a new name, because open connections go by the name, and then rename it."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        copy(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copied(sources: dict[str, Path], to: Path) -> Iterator[StoredFile]:
    """Copy folders by name, and remove everything else below ``to``. Files that are there with the same bytes stay."""
    names: set[str] = set()
    for name, source in sorted(sources.items()):
        for path in sorted(source.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise IntegrityError(f"{path} is a link, a pipe or a device, not a file of MLflow's")
            if path.is_file():
                file = f"{name}/{path.relative_to(source).as_posix()}"
                names.add(file)
                yield _copy(path, to / file, file)
    for path in sorted(to.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(to).as_posix() not in names:
            path.unlink()


def _copy(source: Path, to: Path, name: str) -> StoredFile:
    sha256 = manifest.sha256_file(source)
    if not to.is_file() or manifest.sha256_file(to) != sha256:
        to.parent.mkdir(parents=True, exist_ok=True)
        with manifest.full_disk_as_storage_error(to, "the installation is as it was"):
            shutil.copyfile(source, to)
        if manifest.sha256_file(to) != sha256:
            raise IntegrityError(f"{source} changed while it was copied: stop what writes there, and export again")
    return StoredFile(name=name, size=to.stat().st_size, sha256=sha256)
