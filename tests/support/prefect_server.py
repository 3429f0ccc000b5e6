"""Real Prefect server for tests: it can be killed, and restarted at the same address."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import server
from tests.support.ports import free_port


def request_json(url: str, body: Any = None) -> Any:
    """Return the answer to a GET, or a POST of ``body``. Retries while the database is busy, as Prefect's client does."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(1)


def delete_open_runs(api: str) -> None:
    """Delete open flow runs that other tests left on a server, so that a test finds only its own."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            if run.state is None or not run.state.is_final():
                client.delete_flow_run(run.id)


class PrefectServer:
    """Server on ``home``, a copy of ``template`` (a PREFECT_HOME with a database, which takes ten seconds to create)."""

    def __init__(self, template: Path, home: Path) -> None:
        shutil.copytree(template, home, dirs_exist_ok=True)
        self.home = home
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        environment = {**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_UI_ENABLED": "false"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        server.wait_healthy(self.url, self.process, self.home / "log")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
