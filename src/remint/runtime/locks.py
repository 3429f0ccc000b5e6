"""File locks of the kernel (flock): advisory, and freed however their holder ends.

A lock is on a file, which is made where it is missing, or on a folder that is there (``make=False``). Its holder may delete it:
the next holder locks what then has this name. Every lock of remint is taken here, except for that of remint.runtime.parent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, shared: bool = False, make: bool = True, pause: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock inside the block; wait for it. ``shared``: several processes hold it at once that all share it.

    ``pause`` is called between two tries, and ends the wait by an error; without it the kernel waits.
    Raises FileNotFoundError where the folder is missing.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if pause is not None:
        how |= fcntl.LOCK_NB
    while (handle := _take(path, how, make)) is None:
        assert pause is not None
        pause()
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_if_free(path: Path, *, make: bool = True) -> Iterator[bool]:
    """Hold the lock inside the block where it is free, and tell whether it was. Raises FileNotFoundError as ``locked`` does."""
    handle = _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB, make)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def is_free(path: Path) -> bool:
    """Whether no process holds the lock, or its folder is gone."""
    try:
        with locked_if_free(path) as free:
            return free
    except FileNotFoundError:
        return True


def _take(path: Path, how: int, make: bool) -> int | None:
    """A handle that holds the lock until it is closed; None where another process holds it and ``how`` does not wait."""
    flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
    while True:
        handle = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, how)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass  # its holder deleted it before this one had locked it
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
