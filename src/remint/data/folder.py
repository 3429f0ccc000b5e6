"""Files of a folder in the order of their names, and no file outside of it.

Hidden files are ignored. A link to a file inside the folder is followed. A link that leads outside, to nothing or to a
folder is refused by name, as is every file that is not regular (a pipe would never end).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from remint.errors import DataError


@dataclass(frozen=True)
class File:
    """One file of a folder or of an archive."""

    name: str  # path relative to the folder, parts separated by /
    size: int  # bytes
    read: Callable[[], bytes]  # call it before asking for the next file: archives are read sequentially
    place: tuple[int, int]  # number of files before it, number of all files


@dataclass(frozen=True)
class Walk:
    """Files that can be iterated again."""

    walk: Callable[[], Iterator[File]]

    def __iter__(self) -> Iterator[File]:
        return self.walk()


def is_hidden(name: str) -> bool:
    """Return whether a part of the path is hidden or is the __MACOSX folder of macOS archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def files(folder: Path) -> Iterator[File]:
    """Yield every file below ``folder``. Raises DataError, which names the path, if it is not a regular file or is unreadable."""
    seen: list[str] = []  # names alone: a Path takes some 500 bytes
    for at, folders, names in os.walk(folder, onerror=_raise_data_error):
        inside = os.path.relpath(at, folder)
        found = [os.path.normpath(os.path.join(inside, name)) for name in [*names, *_linked_folders(at, folders)]]  # noqa: PTH118
        seen += [name for name in found if not is_hidden(name)]
    seen.sort()
    for place, name in enumerate(seen):
        path = folder / name
        size = check_regular(path, folder)
        yield File(name, size, partial(_read, path), (place, len(seen)))


def one_file(path: Path) -> Iterator[File]:
    """Yield one file, as ``files`` would."""
    yield File(path.name, check_regular(path, path.parent), partial(_read, path), (0, 1))


def visible_entries(folder: Path) -> list[Path]:
    """Return the visible entries directly in ``folder``, sorted."""
    return [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]


def split_paths(names: Sequence[str]) -> list[list[str]]:
    """Return the parts of each path, without folders that are around all files."""
    parts = [name.split("/") for name in names]
    while len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]
    return parts


def _linked_folders(at: str, folders: list[str]) -> list[str]:
    return [name for name in folders if Path(at, name).is_symlink()]  # os.walk does not enter links


def _raise_data_error(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}): grant read permission, or remove it") from error


def check_regular(path: Path, folder: Path) -> int:
    """Check that ``path`` is a regular file, or a link to one inside ``folder``. Return its size.

    Raises DataError for all others.
    """
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
    """Return a file's content. Open without blocking: a pipe may have replaced the file since it was checked."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): grant read permission, or remove it") from error
    with open(handle, "rb") as stream:  # noqa: PTH123 (a file descriptor)
        _check_kind(path, os.fstat(handle))
        return stream.read()


def fingerprint(place: Path) -> str:
    """Return the SHA-256 of names, sizes and times of a file, or of the visible files below a folder. No file is opened.

    It takes one look at each file. Raises DataError if a folder cannot be listed.
    """
    if not place.is_dir():
        return hashlib.sha256(_facts(place.name, place.stat())).hexdigest()
    state, pending = hashlib.sha256(), [""]
    while pending:
        inside = pending.pop()
        try:
            with os.scandir(place / inside) as entries:
                found = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            _raise_data_error(error)
        for entry in found:
            name = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            else:
                with suppress(FileNotFoundError):  # it was removed meanwhile: the next look sees that
                    state.update(_facts(name, entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)))
    return state.hexdigest()


def _facts(name: str, status: os.stat_result) -> bytes:
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape")
