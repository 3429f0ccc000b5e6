"""The console of this home: its pages put together, and the process of it in the local stack.

python -m flows.stack.console PORT    serves each pipeline of params.yaml on this machine, from when it has a champion on
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flows.stack.metrics import exporter
from flows.stack.outlook import Outlooks
from remint.errors import RemintError
from remint.promotion.console import Registry
from remint.promotion.shadow import settings_of
from remint.runtime import json_log
from remint.runtime.addresses import LOOPBACK
from remint.runtime.home import Home
from remint.runtime.parent import die_with_parent
from remint.serving.app.limits import Limits
from remint.serving.app.run import Pages, Serving, serve
from remint.settings.params import LatestParams, Params
from remint.stores import git

EVERY = 5.0  # seconds between two looks at the ledger


def pages(home: Home, params: Callable[[], Params]) -> Pages:
    """Return the console's pages over the stores of a home, its settings of now, and the Prefect server that it uses."""
    registry = Registry(home, params, Outlooks(home, params))
    threading.Thread(target=_keep_fresh, args=(registry,), name="console", daemon=True).start()
    return Pages(registry, os.environ.get("REMINT_SERVE_PERSON"), exporter(home, params))


def _keep_fresh(registry: Registry) -> None:
    while True:
        with suppress(RemintError):  # a store is away, or there is none yet
            registry.refresh()
        time.sleep(EVERY)


def main() -> None:
    """Serve until a signal arrives or the parent process ends."""
    die_with_parent()
    port = int(sys.argv[1])
    json_log.say(f"The console starts at http://{LOOPBACK[0]}:{port}")
    try:
        home = Home.of(git.repository_of(Path.cwd()))
        params, token = LatestParams(home.repository), os.environ.get("REMINT_SERVE_TOKEN")
        serving = Serving(home, tuple(params().pipelines), Limits(), EVERY, "cpu", token, json_log.say, settings_of)
        serve(serving, LOOPBACK[0], port, pages(home, params), wait=True)
    except RemintError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
