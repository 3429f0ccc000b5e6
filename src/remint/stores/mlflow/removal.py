"""Removal from MLflow: versions, and runs with their files. Only runs that remint opened are considered.

A version is removed before its run, and a run before its files. A process that is killed in between leaves a run without a
version, or a deleted run with files; the next collection finds both. It never leaves a visible version without bytes. In a
database the run is then purged, as `mlflow gc --run-ids` does; on a server it stays marked as deleted.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from remint.errors import IntegrityError, NotFoundError
from remint.runtime.addresses import local_path
from remint.stores.mlflow.door import PREFIX, client, door, pages
from remint.stores.mlflow.records import ModelVersion
from remint.stores.mlflow.registration import Tracking
from remint.stores.mlflow.versions import record_of

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KEEP = "keep"  # tag of a version, remint.keep in MLflow; its value is the reason
START = "remint.start"  # tag that remint sets in the request that opens a run


@dataclass(frozen=True)
class Run:
    """Ended run that remint opened, deleted or not."""

    id: str
    pipeline: str  # name of its experiment
    ended: float  # Unix time
    status: str
    version: str  # NAME/7 that was registered from it, "" if none was
    place: str  # address of its files
    deleted: bool


def kept(store: Tracking) -> list[ModelVersion]:
    """Return the versions of all models that have the tag ``remint.keep``, without their aliases."""
    with door("look for the versions that are kept by tag"):
        found = pages(lambda **page: _client(store).search_model_versions(f"tags.`{PREFIX}{KEEP}` LIKE '%'", **page))
        return [record_of(version) for version in found]


def all_versions(store: Tracking) -> list[ModelVersion]:
    """Return every version that remint registered, of all models, without aliases."""
    with door("list all versions"):
        found = (record_of(each) for each in pages(lambda **page: _client(store).search_model_versions("", **page)))
        return [version for version in found if version.key]


def ended_runs(store: Tracking) -> list[Run]:
    """Return every ended run that remint opened, deleted ones too."""
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
    """Return the bytes of the files at an address; 0 if there are none."""
    with door(f"list the files at {place}"):
        local = local_path(place)
        if local is not None:
            return sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
        return _size(_repository(store, place), None)


def _size(files: ArtifactRepository, path: str | None) -> int:
    return sum(_size(files, each.path) if each.is_dir else each.file_size or 0 for each in files.list_artifacts(path) or [])


def remove_version(store: Tracking, version: ModelVersion) -> None:
    """Delete a version; its run and bytes stay. Do nothing if it is gone already."""
    with suppress(NotFoundError), door(f"delete {version.ref}"):
        _client(store).delete_model_version(version.name, str(version.version))


def remove_run(store: Tracking, run: Run) -> bool:
    """Delete a run and its files. Return False if its row stays, marked as deleted, because only a server can purge it.

    Raises IntegrityError if the address of its files is not one that MLflow gives to this run.
    """
    if run.id not in urlsplit(run.place).path.split("/"):
        raise IntegrityError(
            f"MLflow names {run.place} as the folder of run {run.id}, but that is not a folder of this run: nothing was removed. "
            "Find out who changed the address, and delete the run in MLflow."
        )
    with door(f"delete run {run.id}"):
        mlflow = _client(store)
        if not run.deleted:
            mlflow.delete_run(run.id)
        clear(store, run.place)
        local = local_path(run.place)
        if local is not None and local.parent.name == run.id:
            with suppress(OSError):  # not empty: other programs' files are in it
                local.parent.rmdir()
        database: Any = mlflow._tracking_client.store
        if not hasattr(database, "_hard_delete_run"):
            return False
        database._hard_delete_run(run.id)
        return True


def clear(store: Tracking, place: str) -> None:
    """Remove every file at an address. Do nothing if there are none."""
    files: Any = _repository(store, place)
    with door(f"remove the files at {place}"):
        if hasattr(files, "_get_s3_client"):
            events = files._get_s3_client().meta.events
            events.register("before-sign.s3.DeleteObjects", _sign_md5, unique_id="remint-md5")
        files.delete_artifacts()


def _sign_md5(request: Any, **_named: Any) -> None:
    """Add the MD5 header that older S3 servers require when several objects are deleted; boto3 sends a CRC32 instead."""
    digest = hashlib.md5(request.data, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _client(store: Tracking) -> Any:
    return client(store.uri, store.lock)


def _repository(store: Tracking, place: str) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=store.uri)
