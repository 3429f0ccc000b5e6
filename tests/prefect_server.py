"""A real Prefect server for tests: it can be killed, and started again at the same address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from flows import server


class PrefectServer:
    """A server on ``home``, a copy of ``template`` (a PREFECT_HOME whose database was made: making it takes ten seconds)."""

    def __init__(self, template: Path, home: Path) -> None:
        shutil.copytree(template, home, dirs_exist_ok=True)
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
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
