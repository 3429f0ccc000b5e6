"""What every entry point in pipelines/ shares: arguments, progress, and errors as exit statuses.

A step runs as ``python -m pipelines.NAME KEY`` under dvc, by a flow or by hand. Under a flow the
variable REMINT_EVENTS names a file: the step appends one JSON object a line to it (progress, curves, the
error that ended it), and the flow reads along. By hand the same lines go to standard error in words.
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

EVENTS = "REMINT_EVENTS"  # file that a flow reads along
RESTORE_ONLY = "REMINT_RESTORE_ONLY"  # set while a flow asks dvc whether anything is to do: a step that would run says so
WOULD_RUN = 75  # exit status of a step under RESTORE_ONLY

_told: dict[str, float] = {}  # when a person was last told of an event


def emit(event: str, **fields: Any) -> None:
    """Tells whoever watches: the flow through its file, a person in words, at most twice a second."""
    path = os.environ.get(EVENTS)
    if path:
        line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
        with Path(path).open("a") as stream:
            stream.write(line)
    elif event != "error" and (event != "progress" or time.monotonic() - _told.get(event, 0.0) > 0.5):
        _told[event] = time.monotonic()
        words = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items())
        print(" ".join([event, *words]), file=sys.stderr)


def run_step(main: Callable[[str], None], *, always: bool = False) -> None:
    """Runs one step with the key given on the command line; ends the process with its exit status.

    ``always``: a step that dvc runs every time (snapshot), also while a flow only asks.
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
