"""Ranks of one machine of a cluster, as processes. Ray sends this module by value, as node.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE = 30.0  # seconds that ranks have to write a checkpoint
RECORDS = ("diverged", "PREEMPTED")  # that a training leaves beside its checkpoints
LOG_LINES = 60  # of a rank that failed

Config = dict[str, Any]


class Ranks:
    """The rank processes of this machine."""

    def __init__(self, config: Config, node: int, nodes: int, here: Path, home: Path, environment: dict[str, str]) -> None:
        self.config, self.here, self.home, self.leads = config, here, home, node == 0
        self.told_error = False
        devices = config["devices"]
        self._sent = {name for name, _ in self._steps()}  # which came from the job
        self._events = [home / f"events-{local}.jsonl" for local in range(devices)]
        self._offsets = [0] * devices
        self._logs = [home / f"log-{local}" for local in range(devices)]
        self._processes = []
        for local, (events, log) in enumerate(zip(self._events, self._logs, strict=True)):
            place = {
                "RANK": node * devices + local,
                "WORLD_SIZE": nodes * devices,
                "LOCAL_RANK": local,
                "LOCAL_WORLD_SIZE": devices,
                "GROUP_RANK": node,
                "REMINT_NODE_RANK": node,
                "OMP_NUM_THREADS": config["threads"],
                "REMINT_EVENTS": events,
                "REMINT_PARENT": os.getpid(),
            }
            own = environment | {name: str(value) for name, value in place.items()}
            with log.open("wb") as output:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *config["command"]],
                        cwd=here,
                        env=own,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )

    def ended(self) -> bool:
        """Return whether all ranks have ended. If one failed, the others cannot go on: they are stopped."""
        codes = [process.poll() for process in self._processes]
        if any(code for code in codes):
            self.stop(GRACE)
        return None not in codes

    def failed(self) -> str:
        """Return what the first rank that failed said last; "" if none failed."""
        for process, log in zip(self._processes, self._logs, strict=True):
            if process.returncode:
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                return f"a rank ended with status {process.returncode}: " + "\n".join(lines)
        return ""

    def new_events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of the rank that leads, and the errors of all."""
        for local, events in enumerate(self._events):
            if not events.exists():
                continue
            with events.open("rb") as stream:
                stream.seek(self._offsets[local])
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[local] += len(line)
                    event = json.loads(line)
                    if event["event"] == "error":
                        self.told_error = True
                        here = str(self.home / "checkpoints")
                        event["message"] = event["message"].replace(here, self.config["checkpoints"])
                    if event["event"] == "error" or (self.leads and local == 0):
                        yield event

    def _steps(self) -> list[tuple[str, Path]]:
        return [(f"{step.parent.name}/{step.name}", step) for step in sorted((self.home / "checkpoints").glob("*/step-*"))]

    def new_checkpoints(self) -> Iterator[tuple[str, bytes, list[str]]]:
        """Yield the name of each checkpoint that was not sent, its archive, and the names of all that are there."""
        steps = self._steps()
        for name, step in steps:
            if name not in self._sent:
                with contextlib.suppress(OSError):  # it was removed meanwhile
                    archive = pack(step, name)
                    self._sent.add(name)
                    yield name, archive, [each for each, _ in steps]

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the archive of each record that lies beside the checkpoints."""
        for path in (self.home / "checkpoints").glob("*/*"):
            if path.name in RECORDS:
                yield path.name, pack(path, path.name)

    def signal(self, sign: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)

    def stop(self, patience: float) -> None:
        """End the ranks: SIGTERM, ``patience`` seconds, SIGKILL."""
        for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            if all(process.poll() is not None for process in self._processes):
                return
            self.signal(sign)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
                time.sleep(0.05)


def pack(folder: Path, name: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, name or folder.name)
    return content.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")
