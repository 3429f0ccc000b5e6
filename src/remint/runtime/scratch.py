"""Temporary folders, which may hold copies of models. A killed process does not leave them behind for long.

The process that made a folder locks it. The kernel frees the lock when the process ends, also when it is killed. The next
call of ``folder`` removes all unlocked folders.
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
def folder() -> Iterator[Path]:
    """Yield a new folder, which is removed when the block ends."""
    _sweep()
    with ExitStack() as stack:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            with suppress(FileNotFoundError):  # another process removed it before this one locked it
                stack.enter_context(locked(path, make=False))
                break
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _sweep() -> None:
    """Remove the folders of dead processes of this account."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process removes it
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with locked_if_free(path, make=False) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
