"""Imports a state and kills itself on the way.

python -m tests.support.registry_moves HOME FOLDER file:3    before it writes file number 3
                                                      mlflow:5    after the rows of MLflow's table number 5, or ledger:5
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remint.maintenance.state import import_state
from remint.runtime.home import Home
from remint.stores import tables
from remint.stores.ledger import moving as ledger
from remint.stores.mlflow import moving
from remint.stores.s3 import Objects


def killing(work: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = iter(range(10**9))

    def counted(*arguments: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)

    return counted


def main(home: str, folder: str, moment: str) -> None:
    place, _, number = moment.partition(":")
    if place == "file":
        Objects.put = killing(Objects.put, int(number))  # type: ignore[method-assign]
    else:
        copying = {"mlflow": moving, "ledger": ledger}[place]
        copy = copying.copy

        def watched(*arguments: Any) -> int:
            tables._continue_numbers = killing(tables._continue_numbers, int(number))
            return copy(*arguments)

        copying.copy = watched  # type: ignore[attr-defined]
    import_state(Home(Path(home), Path(home)), Path(folder), print)


if __name__ == "__main__":
    main(*sys.argv[1:])
