"""The worker of the local stack: waits for the server, gives it the schedules of params.yaml, and runs what comes due."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from flows import server
from flows.deploy import POOL, deploy, said
from remint import config, workspace
from remint.home import Home


def main() -> None:
    repository = workspace.repository_of(Path.cwd())
    home = Home.of(repository)
    deadline = time.monotonic() + server.START_LIMIT
    while server.stack(home) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    branch = workspace.branch_of(repository)
    for entry in deploy(home, config.load(repository), branch):
        print(said(entry), flush=True)
    # The worker takes this process over, so that a signal to it meets the worker and nobody between.
    worker = ["-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"]
    os.execv(sys.executable, [sys.executable, *worker])  # noqa: S606


if __name__ == "__main__":
    main()
