"""Temporary folders in the system's place for them, which may hold copies of models: none outlives a killed process for long.

Each is locked by the process that made it; the kernel frees the lock however that ends. Whoever asks for the next one removes
those that nobody holds.
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
    """A new folder, removed when the block ends."""
    _sweep()
    with ExitStack() as stack:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            with suppress(FileNotFoundError):  # another process swept it before this one had locked it
                stack.enter_context(locked(path, make=False))
                break
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _sweep() -> None:
    """Removes the folders of dead processes of this account."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with locked_if_free(path, make=False) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
