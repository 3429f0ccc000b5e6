"""MLflow's part: versions with their runs, and runs of remint that ended without a version."""

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
from remint.runtime.home import Home
from remint.stores.ledger.collected import Collected
from remint.stores.mlflow import ModelVersion, inventory, removal
from remint.stores.mlflow.removal import Run
from remint.stores.open import open_tracking

ABREAST = 8  # runs whose files are listed at a time


@dataclass(frozen=True)
class MlflowInventory:
    """What MLflow held when it was asked."""

    home: Home
    versions: Mapping[str, ModelVersion]  # by NAME/7
    runs: Mapping[str, Run]  # by id, the ended ones of remint's
    strays: Mapping[str, str]  # addresses of files of no run, by name

    @classmethod
    def look(cls, home: Home) -> MlflowInventory:
        store = open_tracking(home)
        strays = dict(_strays(home))
        versions = {version.ref: version for version in removal.all_versions(store)}
        return cls(home, versions, {run.id: run for run in removal.ended_runs(store)}, strays)

    @cached_property
    def of_version(self) -> dict[str, list[str]]:
        """The runs of each version: the one that it was registered from, and those that gave the same model again."""
        found: dict[str, list[str]] = defaultdict(list)
        for run in self.runs.values():
            if run.version:
                found[run.version].append(run.id)
        for ref, version in self.versions.items():
            if version.run_id in self.runs and version.run_id not in found[ref]:
                found[ref].append(version.run_id)
        return found

    def things(self) -> list[Thing]:
        """Versions and runs, without their bytes: these are asked for where they matter (``bytes_of``)."""
        versions = [
            Thing(
                MLFLOW,
                ref,
                datetime.fromisoformat(version.created).timestamp(),
                "a version that nothing needs: no alias, no window, no tag, no job",
            )
            for ref, version in self.versions.items()
        ]
        registered = {version.run_id for version in self.versions.values()}
        strays = [
            Thing(MLFLOW, name, Path(place).stat().st_mtime, "files that no run of MLflow has")
            for name, place in self.strays.items()
        ]
        runs = [
            Thing(MLFLOW, _name(run), run.ended, _why(run, self.versions, run.id in registered)) for run in self.runs.values()
        ]
        return versions + runs + strays

    def needs(self, node: Node) -> list[Node]:
        """What a version needs besides dvc's part."""
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
        """Bytes of the files of the runs among these, and of those of no run, by name."""
        store, places = open_tracking(self.home), {**{_name(run): run.place for run in self.runs.values()}, **self.strays}
        chosen = [thing.name for thing in things if thing.name in places]
        with ThreadPoolExecutor(ABREAST) as pool:
            return dict(zip(chosen, pool.map(lambda name: removal.size(store, places[name]), chosen), strict=True))

    def remove(self, names: Collection[str], window: int) -> list[str]:
        """Takes versions and runs away, versions first; what there is to say of it.

        A version is written down as collected before it goes: from then on the ledger makes it no champion, and nobody takes
        it for lost. Raises RunError where one of them has become a root since this was looked at: nothing is removed then.
        """
        store, book = open_tracking(self.home), Collected(self.home.ledger_url)
        models: dict[str, list[ModelVersion]] = defaultdict(list)
        for version in (self.versions[name] for name in sorted(names) if name in self.versions):
            models[version.name].append(version)
        for model in {version.name for version in self.versions.values()}:
            staying = {each.version for ref, each in self.versions.items() if each.name == model and ref not in names}
            book.forget(model, staying & book.versions(model))  # that a gc which was killed meant to remove
        for model, versions in models.items():
            book.record(model, {version.version: version.key for version in versions})
        late = sorted(set(names) & set(roots.named(self.home, window)))
        if late:
            for model, versions in models.items():
                book.forget(model, [version.version for version in versions])
            raise RunError(f"{', '.join(late)} became a root while this was under way: nothing was removed; run remint gc again")
        for model, versions in models.items():
            with store.exclusively(f"model {model}"):  # nobody registers, and so finds one of them, meanwhile
                for version in versions:
                    removal.remove_version(store, version)
        left = [run for run in self.runs.values() if _name(run) in names and not removal.remove_run(store, run)]
        for name in sorted(set(names) & set(self.strays)):
            removal.clear(store, self.strays[name])
        if not left:
            return []
        return [
            f"{len(left)} runs are marked as deleted, their files are gone: mlflow gc beside the MLflow server purges their rows"
        ]


def _strays(home: Home) -> Iterator[tuple[str, str]]:
    """Folders of files whose run MLflow does not know. Only where database and files are HOME's own: all there is remint's."""
    store = open_tracking(home)
    if not Path(store.uri.removeprefix("sqlite:///")).is_relative_to(home.path):
        return
    for run_id, place in list(inventory.run_folders(store)):
        if Path(place).is_relative_to(home.path) and not inventory.has_run(store, run_id):
            yield f"files {run_id}", place


def _name(run: Run) -> str:
    return f"run {run.id}"


def _why(run: Run, versions: Mapping[str, ModelVersion], registered: bool) -> str:
    if registered or run.version in versions:
        return f"the run of {run.version or 'a version'}, which nothing needs"
    if run.version:
        return f"a run of {run.version}, which is gone"
    return f"a run of {run.pipeline} that ended {run.status} without a version"
