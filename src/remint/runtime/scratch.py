"""Temporary folders, which may hold copies of models. A killed process does not leave them behind for long.

The process that made a folder locks it. The kernel frees the lock when the process ends, also when it is killed. The next
call of ``folder`` removes all unlocked folders in the same place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from remint.runtime.locks import locked, locked_if_free

PREFIX = "remint-held-"


@contextmanager
def folder(beside: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, which is removed when the block ends: among the system's temporary files, or hidden beside a file."""
    place, prefix = (Path(tempfile.gettempdir()), PREFIX) if beside is None else (beside.absolute().parent, f".{PREFIX}")
    _sweep(place, prefix)
    with ExitStack() as stack:
        while True:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            with suppress(FileNotFoundError):  # another process removed it before this one locked it
                stack.enter_context(locked(path, make=False))
                break
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _sweep(place: Path, prefix: str) -> None:
    """Remove the folders of dead processes of this account."""
    for path in place.glob(f"{prefix}*"):
        with suppress(OSError):  # another process removes it
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with locked_if_free(path, make=False) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
