"""The files of a folder, in the order of their names, and nothing that lies outside of it.

Hidden files are ignored. A link is followed where it stays inside; one that leads out, to nothing or to a folder is
refused by name, and so is whatever is no regular file (a pipe would never end).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remint.errors import DataError


@dataclass(frozen=True)
class File:
    """One file of a folder or of an archive."""

    name: str  # below the folder, parts separated by /
    size: int  # bytes
    read: Callable[[], bytes]  # before the next file is asked for: an archive is read from its start to its end
    place: tuple[int, int]  # how far this is, for progress: (done, of how much)


def hidden(name: str) -> bool:
    """Whether any part of a path is hidden, or what macOS adds to its archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def files(folder: Path) -> Iterator[File]:
    """Every file below ``folder``. Raises DataError, which names it, for what is not one."""
    paths = [Path(at, name) for at, folders, names in os.walk(folder) for name in [*names, *_links(at, folders)]]
    seen = sorted((str(path.relative_to(folder)), path) for path in paths)
    seen = [(name, path) for name, path in seen if not hidden(name)]
    for place, (name, path) in enumerate(seen):
        size = _regular(path, folder)
        yield File(name, size, path.read_bytes, (place, len(seen)))


def visible(folder: Path) -> list[Path]:
    """What lies directly in ``folder``."""
    return [path for path in sorted(folder.iterdir()) if not hidden(path.name)]


def _links(at: str, folders: list[str]) -> list[str]:
    return [name for name in folders if Path(at, name).is_symlink()]  # walk does not enter them


def _regular(path: Path, folder: Path) -> int:
    """The size of a regular file, or of the one inside ``folder`` that a link leads to."""
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise DataError(f"{path} is a link that leads out of {folder}: put the file itself there, or remove the link")
        if not target.is_file():
            raise DataError(f"{path} is a link to a folder or to nothing: put the files themselves there, or remove the link")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe, socket or device, not a file: remove it")
    return status.st_size
