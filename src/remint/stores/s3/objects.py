"""Objects below one address by name: fetched with every byte verified, and written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from remint.errors import IntegrityError, StorageError
from remint.stores.s3.bucket import SCHEME, Bucket, BucketObject, ObjectChanged, door, parse

READS = 5  # of an object that another program writes meanwhile


class Objects:
    """Objects below ``url``. ``where``: the setting or argument that names it, for errors, which are those of ``door``."""

    def __init__(self, where: str, url: str) -> None:
        self._where = f"{where}: {url}"
        bucket, prefix = parse(where, url)
        with door(self._where):
            self._bucket, self._prefix = Bucket(bucket, prefix), f"{prefix.rstrip('/')}/" if prefix else ""

    @property
    def url(self) -> str:
        return f"{SCHEME}{self._bucket.bucket}/{self._prefix}".rstrip("/")

    def fetch(self, name: str, to: Path, most: int) -> int | None:
        """Write the bytes of an object, verified, to a file. Return their number; None if there is no such object.

        Raises IntegrityError if there are more than ``most``.
        """
        with door(self._where):
            for _ in range(READS):
                listed = self._bucket.find(self._prefix + name)
                if listed is None:
                    return None
                try:
                    return self._fetch(listed, to, most)
                except ObjectChanged:
                    continue
            raise StorageError(f"{name!r} changed while it was read, {READS} times: run again when no program writes to it")

    def _fetch(self, listed: BucketObject, to: Path, most: int) -> int:
        read = 0

        def on_bytes(count: int) -> None:
            nonlocal read
            read += count
            if max(read, listed.size) > most:
                raise IntegrityError(f"{listed.key!r} has more than {most:,} bytes: it was not read")

        if listed.size > most:
            on_bytes(0)
        self._bucket.read(listed, to, on_bytes)
        return listed.size

    def write(self, name: str, content: bytes) -> None:
        """Write a small object. A reader sees the former bytes or these."""
        with door(self._where):
            self._put(name, BytesIO(content))

    def put(self, path: Path, name: str) -> None:
        """Write one file as an object. A reader sees the former bytes or these."""
        with door(self._where), path.open("rb") as stream:
            self._put(name, stream)

    def upload(self, folder: Path, name: str) -> None:
        """Write the files below a folder as objects below ``name``."""
        with door(self._where):
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                with path.open("rb") as stream:
                    self._put(f"{name}/{path.relative_to(folder).as_posix()}", stream)

    def _put(self, name: str, stream: BinaryIO) -> None:
        self._bucket.s3.upload_fileobj(stream, self._bucket.bucket, self._prefix + name)
