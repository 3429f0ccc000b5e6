"""MLflow's part: versions with their runs, and runs of remint that ended without a version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from remint import roots, stores
from remint.collect.reach import GIT, HOME, MLFLOW, Node, Thing
from remint.collected import Collected
from remint.errors import RunError
from remint.home import Home
from remint.records import ModelVersion
from remint.tracking import removal
from remint.tracking.removal import Run

ABREAST = 8  # runs whose files are listed at a time


@dataclass(frozen=True)
class Shelf:
    """What MLflow held when it was asked."""

    home: Home
    versions: Mapping[str, ModelVersion]  # by NAME/7
    runs: Mapping[str, Run]  # by id, the ended ones of remint's

    @classmethod
    def look(cls, home: Home) -> Shelf:
        store = stores.tracking(home)
        versions = {version.ref: version for version in removal.all_versions(store)}
        return cls(home, versions, {run.id: run for run in removal.ended_runs(store)})

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
        return versions + [
            Thing(MLFLOW, _name(run), run.ended, _why(run, self.versions, run.id in registered)) for run in self.runs.values()
        ]

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
        """Bytes of the files of the runs among these, by name."""
        store, runs = stores.tracking(self.home), {_name(run): run for run in self.runs.values()}
        chosen = [runs[thing.name] for thing in things if thing.name in runs]
        with ThreadPoolExecutor(ABREAST) as pool:
            sizes = pool.map(lambda run: removal.size(store, run.place), chosen)
            return dict(zip((_name(run) for run in chosen), sizes, strict=True))

    def remove(self, names: Collection[str], window: int) -> list[str]:
        """Takes versions and runs away, versions first; what there is to say of it.

        A version is written down as collected before it goes: from then on the ledger makes it no champion, and nobody takes
        it for lost. Raises RunError where one of them has become a root since this was looked at: nothing is removed then.
        """
        store, book = stores.tracking(self.home), Collected(self.home.ledger_url)
        models: dict[str, list[ModelVersion]] = defaultdict(list)
        for version in (self.versions[name] for name in sorted(names) if name in self.versions):
            models[version.name].append(version)
        for model in {version.name for version in self.versions.values()}:
            staying = {each.version for ref, each in self.versions.items() if each.name == model and ref not in names}
            book.forget(model, staying & book.versions(model))  # that a gc which was killed meant to remove
        for model, versions in models.items():
            book.record(model, [version.version for version in versions])
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
        if not left:
            return []
        return [
            f"{len(left)} runs are marked as deleted, their files are gone: mlflow gc beside the MLflow server purges their rows"
        ]


def _name(run: Run) -> str:
    return f"run {run.id}"


def _why(run: Run, versions: Mapping[str, ModelVersion], registered: bool) -> str:
    if registered or run.version in versions:
        return f"the run of {run.version or 'a version'}, which nothing needs"
    if run.version:
        return f"a run of {run.version}, which is gone"
    return f"a run of {run.pipeline} that ended {run.status} without a version"
