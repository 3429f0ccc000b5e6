"""Garbage of MLflow: versions with their runs, runs of remint that ended without a version, and files without a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from remint.errors import RunError
from remint.maintenance.gc.reach import GIT, HOME, MLFLOW, Node, Thing
from remint.promotion import roots
from remint.runtime.addresses import local_path, sqlite_file
from remint.runtime.home import Home
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.mlflow import ModelVersion, inventory, removal
from remint.stores.mlflow.removal import Run
from remint.stores.open import open_tracking

PARALLEL = 8  # runs whose files are listed at the same time


@dataclass(frozen=True)
class MlflowInventory:
    """Content of MLflow at one moment."""

    home: Home
    versions: Mapping[str, ModelVersion]  # by NAME/7
    runs: Mapping[str, Run]  # by id, the ended runs of remint
    strays: Mapping[str, Path]  # folders of files without a run, by name

    @classmethod
    def read(cls, home: Home) -> MlflowInventory:
        store = open_tracking(home)
        strays = dict(_strays(home))
        versions = {version.ref: version for version in removal.all_versions(store)}
        return cls(home, versions, {run.id: run for run in removal.ended_runs(store)}, strays)

    @cached_property
    def of_version(self) -> dict[str, list[str]]:
        """Runs of each version: the one that it was registered from, and later runs that gave the same model."""
        found: dict[str, list[str]] = defaultdict(list)
        for run in self.runs.values():
            if run.version:
                found[run.version].append(run.id)
        for ref, version in self.versions.items():
            if version.run_id in self.runs and version.run_id not in found[ref]:
                found[ref].append(version.run_id)
        return found

    def things(self) -> list[Thing]:
        """Return versions, runs and stray files, without their sizes (see ``bytes_of``)."""
        versions = [
            Thing(
                MLFLOW,
                ref,
                datetime.fromisoformat(version.created).timestamp(),
                "a version without an alias, a keep tag or a job, and not among the last champions",
            )
            for ref, version in self.versions.items()
        ]
        registered = {version.run_id for version in self.versions.values()}
        strays = [
            Thing(MLFLOW, name, folder.stat().st_mtime, "files that belong to no run of MLflow")
            for name, folder in self.strays.items()
        ]
        runs = [
            Thing(MLFLOW, _name(run), run.ended, _why(run, self.versions, run.id in registered)) for run in self.runs.values()
        ]
        return versions + runs + strays

    def needs(self, node: Node) -> list[Node]:
        """Return the nodes that a version needs, except those of dvc."""
        version = self.versions.get(node[1]) if node[0] == MLFLOW else None
        if version is None:
            return []
        return [
            *((MLFLOW, _name(self.runs[run_id])) for run_id in self.of_version[version.ref]),
            (HOME, f"models/{version.key}"),
            (HOME, f"evaluations of {version.key}"),
            (HOME, f"reports/{version.ref}"),
            (GIT, f"refs/remint/{version.commit}"),
        ]

    def bytes_of(self, things: Sequence[Thing]) -> dict[str, int]:
        """Return the size in bytes of the runs and stray files among these, by name."""
        store, places = open_tracking(self.home), {_name(run): run.place for run in self.runs.values()}
        places |= {name: folder.as_uri() for name, folder in self.strays.items()}
        chosen = [thing.name for thing in things if thing.name in places]
        with ThreadPoolExecutor(PARALLEL) as pool:
            return dict(zip(chosen, pool.map(lambda name: removal.size(store, places[name]), chosen), strict=True))

    def remove(self, names: Collection[str], window: int) -> list[str]:
        """Remove versions, then runs and files. Return notes for people.

        A version is recorded as collected before it is removed. From then on the ledger does not make it champion, and it
        does not count as lost. Raises RunError if one of them has become a root meanwhile: nothing is removed then.
        """
        store, book = open_tracking(self.home), CollectedVersions(self.home.ledger_url)
        models: dict[str, list[ModelVersion]] = defaultdict(list)
        for version in (self.versions[name] for name in sorted(names) if name in self.versions):
            models[version.name].append(version)
        for model in {version.name for version in self.versions.values()}:
            staying = {each.version for ref, each in self.versions.items() if each.name == model and ref not in names}
            book.forget(model, staying & book.versions(model))  # recorded by a gc that was killed before the removal
        for model, versions in models.items():
            book.record(model, {version.version: version.key for version in versions})
        late = sorted(set(names) & set(roots.root_reasons(self.home, window)))
        if late:
            for model, versions in models.items():
                book.forget(model, [version.version for version in versions])
            raise RunError(f"{', '.join(late)} became a root during the collection: nothing was removed; run remint gc again")
        for model, versions in models.items():
            with store.exclusive_lock(f"model {model}"):  # no registration may find one of them meanwhile
                for version in versions:
                    removal.remove_version(store, version)
        left = [run for run in self.runs.values() if _name(run) in names and not removal.remove_run(store, run)]
        for name in sorted(set(names) & set(self.strays)):
            removal.clear(store, self.strays[name].as_uri())
        if not left:
            return []
        return [
            f"{len(left)} runs are marked as deleted, their files are removed: run mlflow gc on the MLflow server to purge them"
        ]


def _strays(home: Home) -> Iterator[tuple[str, Path]]:
    """Yield folders whose run MLflow does not know, only if database and files are in HOME: all files there are remint's."""
    store = open_tracking(home)
    database = sqlite_file(store.uri)
    if not database or not database.is_relative_to(home.path):
        return
    for run_id, place in list(inventory.run_folders(store)):
        folder = local_path(place)
        if folder and folder.is_relative_to(home.path) and not inventory.has_run(store, run_id):
            yield f"files {run_id}", folder


def _name(run: Run) -> str:
    return f"run {run.id}"


def _why(run: Run, versions: Mapping[str, ModelVersion], registered: bool) -> str:
    if registered or run.version in versions:
        return f"the run of {run.version or 'a version'} that is not needed"
    if run.version:
        return f"a run of {run.version}, which no longer exists"
    return f"a run of {run.pipeline} that ended {run.status} without a version"
