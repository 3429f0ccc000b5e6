"""Files by name in a bucket or a folder: fetched with every byte verified, and written so that a reader sees whole ones."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from remint.errors import IntegrityError, StorageError
from remint.runtime import scratch
from remint.runtime.addresses import local_path
from remint.stores import s3


class Files(Protocol):
    """Files below one address, by name."""

    def fetch(self, name: str, to: Path, most: int) -> int | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def put(self, path: Path, name: str) -> None: ...
    def upload(self, folder: Path, name: str) -> None: ...


def open_files(where: str, address: str) -> Files:
    """Return the files below s3://bucket/prefix, a folder, or file://... ``where``: the setting that names it, for errors."""
    if address.startswith(s3.SCHEME):
        return s3.Objects(where, address)
    place = local_path(address)
    return Folder(place if place is not None and address.startswith("file:") else Path(address))


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def fetch(self, name: str, to: Path, most: int) -> int | None:
        """Copy a file. Return its size; None if it is missing. Raises IntegrityError if it is a link or a pipe, or too large."""
        with self._errors("read"):
            try:
                found = (self._root / name).lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                    raise IntegrityError(f"{self._root / name} is not a file of at most {most:,} bytes: it was not read")
                shutil.copyfile(self._root / name, to, follow_symlinks=False)
                return found.st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file. A reader sees the former bytes or these."""
        with scratch.folder() as temporary:
            (temporary / "part").write_bytes(content)
            self.put(temporary / "part", name)

    def put(self, path: Path, name: str) -> None:
        """Copy one file here. A reader sees the former bytes or these."""
        to = self._root / name
        with self._errors("written"):
            to.parent.mkdir(parents=True, exist_ok=True)
            with scratch.folder(beside=to) as temporary:
                shutil.copyfile(path, temporary / "part")
                _flush(temporary / "part")
                (temporary / "part").replace(to)

    def upload(self, folder: Path, name: str) -> None:
        with self._errors("written"):
            self._root.mkdir(parents=True, exist_ok=True)
            with scratch.folder(beside=self._root / name) as temporary:
                copied = shutil.copytree(folder, temporary / "copied", copy_function=shutil.copyfile)
                for path in (each for each in copied.rglob("*") if each.is_file()):
                    _flush(path)
                if (self._root / name).exists():  # damaged
                    (self._root / name).rename(temporary / "former")
                copied.rename(self._root / name)

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._root} cannot be {done}: {error.strerror or error}") from error


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
