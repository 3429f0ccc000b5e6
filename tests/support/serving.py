"""`remint serve` as a process on a home with a few small versions, clients that ask it, and what each version draws alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from remint.runtime.home import Home
from remint.serving.load import load_version
from tests.support.ports import free_port
from tests.support.promotion_cases import MODEL
from tests.support.team import REMINT, SOURCE

BODY = {"count": 3, "seed": 6}
PATIENCE = 300.0  # seconds until a server is ready, or follows, on a loaded machine


@dataclass
class Serving:
    """One served home. ``programs``: folder of preloaded programs (preloaded.py), None for a new Python process."""

    home: Home
    repository: Path
    programs: Path | None
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ("--every", "0.1")
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.repository / "serve.log"

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        program = REMINT if self.programs is None else str(self.programs / "remint")
        environment = {**os.environ, "REMINT_HOME": str(self.home.path), **self.environment}
        with self.log.open("ab") as log:
            command = [program, "serve", MODEL, "--port", str(self.port), *self.options]
            self.process = subprocess.Popen(command, cwd=self.repository, env=environment, stdout=log, stderr=log)
        self.wait_for(lambda: httpx.get(f"{self.address}/readyz").status_code == 200)

    def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached()`` is true. An address that does not answer counts as false."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if reached():
                    return
            except httpx.TransportError:
                pass
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def version(self) -> int:
        """Return the number of the version that is served."""
        return int(httpx.get(f"{self.address}/v1/models/{MODEL}").json()["version"])

    def sample(self) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/models/{MODEL}:sample", json=BODY, timeout=PATIENCE)

    @contextmanager
    def asked(self, clients: int) -> Iterator[list[str]]:
        """Let clients ask while the block runs. Yield the list of problems: failed requests, and answers of no version."""
        alone: dict[int, Any] = {}
        problems: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    said = self.sample()
                    number = said.json().get("version", 0)
                    if said.status_code != 200:
                        problems.append(f"{said.status_code}: {said.text[:200]}")
                    elif alone.setdefault(number, said.json()["values"]) != said.json()["values"]:
                        problems.append(f"version {number} gave two answers")
                except Exception as error:
                    problems.append(repr(error))
                    return

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield problems
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        problems += [f"version {number} answered another way" for number in alone if alone[number] != self.alone(number)]

    def alone(self, number: int) -> Any:
        """Return what a version draws by itself."""
        return load_version(self.home, f"{MODEL}/{number}").sample(**BODY).tolist()


@contextmanager
def serving(
    home: Home, folder: Path, programs: Path | None, *, options: tuple[str, ...] = (), **environment: str
) -> Iterator[Serving]:
    """Serve a home from a repository at ``folder`` until the block ends."""
    folder.mkdir()
    shutil.copy(SOURCE / "params.yaml", folder)
    commit = "git init -q && git add -A && git -c user.name=A -c user.email=a@example.org commit -qm first"
    subprocess.run(["sh", "-c", commit], cwd=folder, check=True)
    made = Serving(home, folder, programs, environment)
    made.options += options
    try:
        made.start()
        yield made
    finally:
        made.kill()
