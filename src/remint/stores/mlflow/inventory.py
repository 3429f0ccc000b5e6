"""Full inventory of MLflow, for comparison with other stores: versions, runs, and folders of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.errors import NotFoundError
from remint.records import TrainedModel
from remint.runtime import scratch
from remint.runtime.addresses import local_path
from remint.stores.mlflow import package
from remint.stores.mlflow.door import client, door, pages
from remint.stores.mlflow.records import ModelVersion, VersionTags
from remint.stores.mlflow.registration import Tracking
from remint.stores.mlflow.versions import record_of

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Run:
    """One run, deleted or not. ``ours``: opened by remint. ``version``: tag of the version that was registered from it."""

    id: str
    status: str
    deleted: bool
    ours: bool
    version: str
    place: str  # address of its files


@dataclass(frozen=True)
class StoredVersion:
    """One version and the recorded address of its files."""

    version: ModelVersion
    source: str


def runs(store: Tracking) -> dict[str, Run]:
    """Return every run in MLflow's database, deleted ones too, by id."""
    from mlflow.entities import ViewType

    with door("list runs"):
        mlflow = client(store.uri, store.lock)
        experiments = [each.experiment_id for each in pages(lambda **page: mlflow.search_experiments(ViewType.ALL, **page))]
        found = pages(lambda **page: mlflow.search_runs(experiments, run_view_type=ViewType.ALL, **page))
        return {run.info.run_id: _run(run) for run in found}


def _run(run: Any) -> Run:
    tags = run.data.tags
    return Run(
        id=run.info.run_id,
        status=run.info.status,
        deleted=run.info.lifecycle_stage == "deleted",
        ours="remint.start" in tags,
        version=tags.get("remint.version", ""),
        place=run.info.artifact_uri,
    )


def has_run(store: Tracking, run_id: str) -> bool:
    """Return whether this run is in MLflow's database, deleted or not."""
    try:
        with door(f"look for run {run_id}"):
            client(store.uri, store.lock).get_run(run_id)
    except NotFoundError:
        return False
    return True


def restore_run(store: Tracking, run_id: str) -> None:
    """Undo the deletion of a run."""
    with door(f"restore run {run_id}"):
        client(store.uri, store.lock).restore_run(run_id)


def versions(store: Tracking, name: str) -> list[StoredVersion]:
    """Return the versions of one model, oldest first, without their aliases."""
    with door(f"list versions of {name}"):
        mlflow = client(store.uri, store.lock)
        found = pages(lambda **page: mlflow.search_model_versions(f"name = '{name}'", **page))
        return sorted(
            (StoredVersion(record_of(each), each.source or "") for each in found), key=lambda each: each.version.version
        )


def files(store: Tracking, held: StoredVersion) -> dict[str, int]:
    """Return the size in bytes, by name, of the files of a version's bundle, as the store lists them; {} if they are gone.

    Raises IntegrityError if links, pipes or devices are among them.
    """
    with door(f"list the files of {held.version.ref}"):
        place = local_path(held.source)
        if place is not None and place.exists():
            package.check_regular_files(place)
        listed = artifact_repository(store, held.source).list_artifacts(package.DATA)
        return {Path(each.path).name: each.file_size or 0 for each in listed or [] if not each.is_dir}


def keeps_model(store: Tracking, run: Run) -> bool:
    """Return whether a run keeps the files of a model."""
    with door(f"list the files of run {run.id}"):
        return any(each.path == package.FOLDER for each in artifact_repository(store, run.place).list_artifacts() or [])


def has_files(store: Tracking, place: str) -> bool:
    """Return whether there is any file below this address (`mlflow gc` leaves empty folders behind)."""
    with door(f"list {place}"):
        repository, folders = artifact_repository(store, place), [""]
        while folders:
            listed = repository.list_artifacts(folders.pop() or None) or []
            if any(not each.is_dir for each in listed):
                return True
            folders += [each.path for each in listed if each.is_dir]
    return False


def run_folders(store: Tracking) -> Iterator[tuple[str, str]]:
    """Yield the run id and the address of each run's folder in the artifact stores of all experiments.

    A server's own store, as of the experiment that it makes in a new database, is listed through that server only.
    """
    from mlflow.entities import ViewType

    with door("list the folders of runs"):
        mlflow = client(store.uri, store.lock)
        experiments = list(pages(lambda **page: mlflow.search_experiments(ViewType.ALL, **page)))
        places = {each.artifact_location for each in experiments if each.artifact_location}
        for place in sorted(places):
            if place.startswith("mlflow-artifacts:") and not store.uri.startswith("http"):
                continue
            for each in artifact_repository(store, place).list_artifacts() or []:
                if each.is_dir and RUN_ID.fullmatch(Path(each.path).name):
                    yield Path(each.path).name, f"{place}/{each.path}"


def restore_files(store: Tracking, held: StoredVersion, bundle: Path) -> None:
    """Write the files of a version again, from its verified bundle, and read them back. Removes nothing.

    Raises IntegrityError if the store returns other bytes than were registered.
    """
    with door(f"put {held.version.ref} back"), scratch.folder() as temporary:
        package.check(bundle, held.version)
        remint = package.requirement(store.place, held.version.tags)
        packed = package.pack(bundle, TrainedModel.read(bundle / "training.json").spec, remint, temporary / package.FOLDER)
        artifact_repository(store, held.source).log_artifacts(str(packed))
        store.set_tags(held.version, VersionTags(package_sha256=package.sha256(packed)))  # MLmodel contains the time of packing
        store.fetch(store.version(held.version.ref), temporary / "back")


def artifact_repository(store: Tracking, place: str) -> Any:  # its methods have no types
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=store.uri)
