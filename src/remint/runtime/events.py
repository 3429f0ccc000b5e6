"""Shared code of the entry points in pipelines/: arguments, progress events, and exit statuses for errors.

A step runs as ``python -m pipelines.NAME KEY``, started by dvc in a flow or by hand. In a flow the variable REMINT_EVENTS
names a file. The step appends one JSON object per line to it (progress, curves, the error that ended it), and the flow
reads them. By hand, the same events go to standard error as text.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remint.errors import RemintError, StorageError
from remint.runtime.parent import die_with_parent

EVENTS = "REMINT_EVENTS"  # file of events that the flow reads
RESTORE_ONLY = "REMINT_RESTORE_ONLY"  # set while a flow asks dvc whether a step must run: the step emits would_run and exits
COMPILE = "REMINT_COMPILE"  # set while a version is rebuilt: on or off, what training.compile: auto chose for it
WOULD_RUN = 75  # exit status of a step under RESTORE_ONLY

_last_printed: dict[str, float] = {}  # monotonic time of the last line printed for an event


def emit(event: str, **fields: Any) -> None:
    """Report an event: to the flow's file, or to standard error as text (progress at most twice a second)."""
    path = os.environ.get(EVENTS)
    if path:
        line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
        with Path(path).open("a") as stream:
            stream.write(line)
    elif event != "error" and (event != "progress" or time.monotonic() - _last_printed.get(event, 0.0) > 0.5):
        _last_printed[event] = time.monotonic()
        parts = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items())
        print(" ".join([event, *parts]), file=sys.stderr)


def run_step(main: Callable[[str], None], *, always: bool = False) -> None:
    """Run one step with the key from the command line. End the process with the step's exit status.

    ``always``: for a step that dvc runs every time (snapshot). It runs under RESTORE_ONLY too.
    """
    key = sys.argv[1]
    if os.environ.get(RESTORE_ONLY) and not always:
        emit("would_run", step=Path(sys.argv[0]).stem, key=key)
        raise SystemExit(WOULD_RUN)
    die_with_parent()
    emit("started", step=Path(sys.argv[0]).stem, key=key, pid=os.getpid())
    try:
        main(key)
    except RemintError as error:
        _end(error)
    except OSError as error:
        if error.errno is None:
            raise
        _end(StorageError(f"{error.strerror}: {error.filename or 'a file'}"))
    emit("ended", step=Path(sys.argv[0]).stem, key=key)


def _end(error: RemintError) -> None:
    emit("error", kind=type(error).__name__, message=str(error))
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_status)
