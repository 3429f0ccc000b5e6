"""Advisory file locks of the kernel (flock). The kernel frees a lock when its holder ends, also when it is killed.

A lock is on a file, which is made if it is missing, or on an existing folder (``make=False``). The holder may delete the
file: the next holder then locks the new file of that name. All locks of remint are taken here, except those of
remint.runtime.parent and remint.distributed.node.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, shared: bool = False, make: bool = True, pause: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait for the lock and hold it inside the block. ``shared``: several processes may share the lock.

    ``pause`` is called between two tries; it may raise to end the wait. Without it the kernel waits.
    Raises FileNotFoundError if the folder is missing.
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
    """Hold the lock inside the block if it is free. Yields whether it was. Raises FileNotFoundError as ``locked`` does."""
    handle = _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB, make)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def is_free(path: Path) -> bool:
    """Return whether no process holds the lock, or its folder is gone."""
    try:
        with locked_if_free(path) as free:
            return free
    except FileNotFoundError:
        return True


def _take(path: Path, how: int, make: bool) -> int | None:
    """Return a handle that holds the lock until it is closed; None if another process holds it and ``how`` does not wait."""
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
            pass  # its holder deleted it before this process locked it
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
