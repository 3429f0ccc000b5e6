"""The files of a folder, in the order of their names, and nothing that lies outside of it.

Hidden files are ignored. A link is followed where it stays inside; one that leads out, to nothing or to a folder is
refused by name, and so is whatever is no regular file (a pipe would never end).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from remint.errors import DataError


@dataclass(frozen=True)
class File:
    """One file of a folder or of an archive."""

    name: str  # below the folder, parts separated by /
    size: int  # bytes
    read: Callable[[], bytes]  # before the next file is asked for: an archive is read from its start to its end
    place: tuple[int, int]  # how many come before it, and of how many it is one


def hidden(name: str) -> bool:
    """Whether any part of a path is hidden, or what macOS adds to its archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def files(folder: Path) -> Iterator[File]:
    """Every file below ``folder``. Raises DataError, which names it, for what is not one or cannot be read."""
    walked = os.walk(folder, onerror=_refuse)
    paths = [Path(at, name) for at, folders, names in walked for name in [*names, *_links(at, folders)]]
    seen = sorted((str(path.relative_to(folder)), path) for path in paths)
    seen = [(name, path) for name, path in seen if not hidden(name)]
    for place, (name, path) in enumerate(seen):
        size = regular(path, folder)
        yield File(name, size, partial(_read, path), (place, len(seen)))


def visible(folder: Path) -> list[Path]:
    """What lies directly in ``folder``."""
    return [path for path in sorted(folder.iterdir()) if not hidden(path.name)]


def _links(at: str, folders: list[str]) -> list[str]:
    return [name for name in folders if Path(at, name).is_symlink()]  # walk does not enter them


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}): grant the right to read it, or remove it") from error


def regular(path: Path, folder: Path) -> int:
    """The size of a regular file, or of the one inside ``folder`` that a link leads to. Raises DataError for all else."""
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise DataError(f"{path} is a link that leads out of {folder}: put the file itself there, or remove the link")
        if not target.is_file():
            raise DataError(f"{path} is a link to a folder or to nothing: put the files themselves there, or remove the link")
    status = path.stat()
    _check_kind(path, status)
    return status.st_size


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe, socket or device, not a file: remove it")


def _read(path: Path) -> bytes:
    """The content of a file that may have been replaced by a pipe since it was looked at: opening one must not wait."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): grant the right to read it, or remove it") from error
    with open(handle, "rb") as stream:  # noqa: PTH123 (by its number)
        _check_kind(path, os.fstat(handle))
        return stream.read()
