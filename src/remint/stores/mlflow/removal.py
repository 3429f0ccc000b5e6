"""What is taken out of MLflow: versions, and runs with their files. Only remint's own runs are ever looked at here.

A version goes before its run, and a run before its files: a process that is killed in between leaves a run that no version
needs, or a deleted one with files, which the next look finds; it never leaves a version that is there to see and has no
bytes. In a database a run is then purged, as `mlflow gc --run-ids` does; a server leaves it marked as deleted.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from remint.errors import IntegrityError, NotFoundError
from remint.stores.mlflow.door import PREFIX, client, door, pages
from remint.stores.mlflow.records import ModelVersion
from remint.stores.mlflow.registration import Tracking
from remint.stores.mlflow.versions import record_of

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KEEP = "keep"  # tag of a version, remint.keep in MLflow; its value says why it is kept
START = "remint.start"  # tag that every run of ours has from its first moment on


@dataclass(frozen=True)
class Run:
    """A run of remint's that has ended, deleted or not."""

    id: str
    pipeline: str  # name of its experiment
    ended: float  # Unix time
    status: str
    version: str  # NAME/7 that was registered of it, "" where none was
    place: str  # address of its files
    deleted: bool


def kept(store: Tracking) -> list[ModelVersion]:
    """The versions of all models that carry the tag ``remint.keep``, without their aliases."""
    with door("look for the versions that are kept by tag"):
        found = pages(lambda **page: _client(store).search_model_versions(f"tags.`{PREFIX}{KEEP}` LIKE '%'", **page))
        return [record_of(version) for version in found]


def all_versions(store: Tracking) -> list[ModelVersion]:
    """Every version of every model that remint registered, without their aliases."""
    with door("list all versions"):
        found = (record_of(each) for each in pages(lambda **page: _client(store).search_model_versions("", **page)))
        return [version for version in found if version.key]


def ended_runs(store: Tracking) -> list[Run]:
    """Every run that remint opened and that has ended, deleted ones too."""
    from mlflow.entities import ViewType

    with door("list runs"):
        mlflow = _client(store)
        names = {each.experiment_id: each.name for each in pages(lambda **page: mlflow.search_experiments(ViewType.ALL, **page))}
        found = pages(
            lambda **page: mlflow.search_runs(list(names), f"tags.`{START}` LIKE '%'", run_view_type=ViewType.ALL, **page)
        )
        return [_run(run, names[run.info.experiment_id]) for run in found if run.info.status != "RUNNING"]


def _run(run: Any, pipeline: str) -> Run:
    return Run(
        id=run.info.run_id,
        pipeline=pipeline,
        ended=(run.info.end_time or run.info.start_time) / 1000,
        status=run.info.status,
        version=run.data.tags.get(f"{PREFIX}version", ""),
        place=run.info.artifact_uri,
        deleted=run.info.lifecycle_stage == "deleted",
    )


def size(store: Tracking, place: str) -> int:
    """Bytes of the files at an address; 0 where there are none."""
    with door(f"list the files at {place}"):
        local = _local(place)
        if local is not None:
            return sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
        return _size(_repository(store, place), None)


def _size(files: ArtifactRepository, path: str | None) -> int:
    return sum(_size(files, each.path) if each.is_dir else each.file_size or 0 for each in files.list_artifacts(path) or [])


def remove_version(store: Tracking, version: ModelVersion) -> None:
    """Deletes a version; its run and bytes stay. Nothing where it is gone already."""
    with suppress(NotFoundError), door(f"delete {version.ref}"):
        _client(store).delete_model_version(version.name, str(version.version))


def remove_run(store: Tracking, run: Run) -> bool:
    """Deletes a run and its files. False where its row stays, marked as deleted, since only a server can purge it.

    Raises IntegrityError where the address of its files is not one that MLflow gives to this run.
    """
    if run.id not in urlsplit(run.place).path.split("/"):
        raise IntegrityError(
            f"MLflow says that the files of run {run.id} lie at {run.place}, which is no place of that run: it was left there; "
            "look who wrote that, and delete the run in MLflow"
        )
    with door(f"delete run {run.id}"):
        mlflow = _client(store)
        if not run.deleted:
            mlflow.delete_run(run.id)
        clear(store, run.place)
        local = _local(run.place)
        if local is not None and local.parent.name == run.id:
            with suppress(OSError):  # not empty: it holds what is not ours
                local.parent.rmdir()
        database: Any = mlflow._tracking_client.store
        if not hasattr(database, "_hard_delete_run"):
            return False
        database._hard_delete_run(run.id)
        return True


def clear(store: Tracking, place: str) -> None:
    """Removes every file at an address. Nothing where there are none."""
    files: Any = _repository(store, place)
    with door(f"remove the files at {place}"):
        if hasattr(files, "_get_s3_client"):
            events = files._get_s3_client().meta.events
            events.register("before-sign.s3.DeleteObjects", _sign_md5, unique_id="remint-md5")
        files.delete_artifacts()


def _sign_md5(request: Any, **_named: Any) -> None:
    """What servers that speak an older S3 ask of a request that deletes several objects; boto3 sends a CRC32 instead."""
    digest = hashlib.md5(request.data, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _local(place: str) -> Path | None:
    """The folder that an address stands for; None where it is not on this machine."""
    parts = urlsplit(place)
    return Path(parts.path) if parts.scheme in ("", "file") else None


def _client(store: Tracking) -> Any:
    return client(store.uri, store.lock)


def _repository(store: Tracking, place: str) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=store.uri)
