"""Download of a single object that the settings name together with its SHA-256: fetched once, verified."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from remint.errors import DataError, IntegrityError, Interrupted
from remint.runtime import processes
from remint.runtime.home import Home
from remint.runtime.manifest import sha256_file
from remint.stores.s3.bucket import SCHEME, Bucket, ObjectChanged, door, parse
from remint.stores.s3.folder import OnEvent

if TYPE_CHECKING:
    from remint.settings.params import PipelineSettings


def feature_files(pipeline: str, settings: PipelineSettings) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, key in params.yaml, address and SHA-256 of each feature file of the metrics that lies on S3."""
    for name, (file, sha256) in settings.evaluation.feature_files(settings.metrics()).items():
        if file.path.startswith(SCHEME):
            yield name, f"params.yaml: pipelines.{pipeline}.evaluation.{name}.path", file.path, sha256


def fetch_file(home: Home, key: str, url: str, sha256: str, on_event: OnEvent) -> Path:
    """Return HOME/files/``sha256``, with the bytes of that digest. Fetch them atomically from ``url`` if they are missing.

    ``key``: the setting that names the address, for errors. Raises DataError if the object does not exist or changes while it
    is read, IntegrityError if it has another SHA-256, StorageError as ``fetch`` does.
    """
    path = home.files / sha256
    if path.is_file() and sha256_file(path) == sha256:
        return path
    bucket, name = parse(key, url)
    where = f"{key}: {url}"
    part = path.with_name(f".{sha256}.{os.getpid()}.part")
    with door(where):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = _read(Bucket(bucket, name), part, on_event)
            if found != sha256:
                raise IntegrityError(f"its SHA-256 is {found}, expected {sha256}: nothing was kept")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _read(bucket: Bucket, part: Path, on_event: OnEvent) -> str:
    """Write the single object at the address to ``part``. Return its SHA-256."""
    listed, *others = bucket.objects().values()
    if others or listed.key != bucket.prefix:
        raise DataError("it is a folder, expected the address of one file: s3://bucket/key")
    read = 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count
        on_event({"event": "progress", "step": read, "steps": listed.size})
        if processes.stopping.is_set():
            raise Interrupted("interrupted: run the same command again")

    try:
        return bucket.read(listed, part, on_bytes)[0]
    except ObjectChanged:
        raise DataError("it changed while it was read: run again when no program writes to it") from None
