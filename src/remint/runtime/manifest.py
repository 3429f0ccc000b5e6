"""Sealed folders: a manifest holds the SHA-256 of each file. They are written atomically and verified before use.

Weights formats do not detect flipped bits. So nothing is loaded before its files match the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, StorageError

NAME = "manifest.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a full disk, a quota, and a limit on the size of a file
LARGEST = 1 << 20  # bytes of a manifest: enough for some ten thousand files


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(*roots: Path) -> str:
    """Return one digest over the names and bytes of all files below ``roots``, without __pycache__ and .egg-info."""
    state = hashlib.sha256()
    for root in roots:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            if not any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts):
                name = path.name if path == root else str(path.relative_to(root))
                state.update(f"{name} {sha256_file(path)}\n".encode())
    return state.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path, **about: Any) -> dict[str, Any]:
    """Write the manifest of a folder: ``about`` and the SHA-256 of every file below it. Return the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)
    manifest = {**about, "files": {str(p.relative_to(folder)): sha256_file(p) for p in files}}
    for path in files:
        _fsync(path)
    (folder / NAME).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    _fsync(folder / NAME)
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of ``folder`` after every file was checked against it. Raises IntegrityError, which names the file."""
    try:
        manifest: dict[str, Any] = json.loads(_read(folder / NAME))
        files = dict[str, str](manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{folder} has no readable {NAME}: {type(error).__name__}") from error
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {NAME}
    for name in sorted(present | set(files)):
        if name not in present:
            raise IntegrityError(f"{folder}/{name} is missing, but {NAME} lists it")
        if name not in files:
            raise IntegrityError(f"{folder}/{name} is not in {NAME}: it was added later")
        if sha256_file(folder / name) != files[name]:
            raise IntegrityError(f"{folder}/{name} is damaged: its SHA-256 is not the one in {NAME}")
    return manifest


def _read(path: Path) -> bytes:
    """Return the bytes of a manifest. Raises ValueError if it is too large or truncated."""
    with path.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    if not content.endswith(b"\n"):
        raise ValueError("truncated")
    return content


@contextmanager
def whole_folder(target: Path, **about: Any) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``target``, sealed, when the block ends without an error.

    Files are flushed, then the manifest is written, then the folder is renamed, then the parent is flushed. So a crash or a
    full disk leaves either nothing or all of it. Raises StorageError if the disk is full.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with full_disk_as_storage_error(target, "earlier files are intact"):
            temporary.mkdir(parents=True)
            yield temporary
            seal(temporary, **about)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            _fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def full_disk_as_storage_error(target: Path, kept: str) -> Iterator[None]:
    """Raise StorageError in place of the OSError of a full disk. ``kept``: a clause that says what was not lost."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageError(f"no room to write {target} ({error.strerror}): {kept}. Free space and run again.") from error
        raise
