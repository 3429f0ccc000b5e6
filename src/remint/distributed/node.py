"""One machine's part of a training on several: Ray Train calls ``run_node`` on each.

Ray sends this module by value. It imports nothing of remint, because the machine may have another remint installed: the ranks
run the code of the job's commit, which comes with the job. The environment, secrets too, is that of the machine's ``ray start``.

    CACHE/runs/.../code/          the commit's code
    CACHE/runs/.../checkpoints/   checkpoints of this attempt, which the rank that leads sends to the job
    CACHE/data/                   prepared datasets (pipelines/fetch.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CACHE = "REMINT_NODE_CACHE"  # folder of the machine; by default ~/.cache/remint
EVERY = 0.5  # seconds between two looks at the ranks
GRACE = 30.0  # seconds that ranks have to write a checkpoint
KEPT = 4  # newest checkpoints that a machine gets
LOG_LINES = 60  # of a rank that failed

Config = dict[str, Any]


class Mailbox:
    """Actor through which the job and the machines of one training speak."""

    def __init__(self, code: list[Any], checkpoints: list[Any]) -> None:
        self.code, self.checkpoints = code[0], checkpoints
        self.stop = False
        self.messages: list[tuple[Any, ...]] = []

    def begin(self, leads: bool, size: int) -> tuple[Any, list[Any]]:
        """Return the code and the newest checkpoints, by reference, to a machine of ``size``."""
        if leads:
            self.messages.append(("begin", size))
        return self.code, self.checkpoints

    def put(self, kind: str, *content: Any) -> None:
        """Take a message of a machine. Files stay in the store of this machine: that of the sender may be lost."""
        import ray

        content = tuple(ray.put(each) if isinstance(each, bytes) else each for each in content)
        if kind == "checkpoint":
            self.checkpoints = [*self.checkpoints[1 - KEPT :], content[0]]
        self.messages.append((kind, *content))

    def stopping(self) -> bool:
        """Return whether the job was asked to stop."""
        return self.stop

    def take(self, stop: bool) -> list[tuple[Any, ...]]:
        """Return the messages since the last call. ``stop``: the job was asked to stop."""
        self.stop, messages, self.messages = stop, self.messages, []
        return messages


def run_node(config: Config) -> None:
    """Run this machine's ranks to their end. ``config``: what remint.distributed.cluster sends.

    An error of a user goes to the mailbox, and the call returns: to run again would not help. If a rank died, RuntimeError is
    raised: Ray starts all machines again.
    """
    import ray
    from ray import train
    from ray.train import collective

    context = train.get_context()
    node, nodes = context.get_world_rank(), context.get_world_size()
    mailbox = config["mailbox"]

    def tell(kind: str, *content: Any) -> None:
        ray.get(mailbox.put.remote(kind, *content))

    code, checkpoints = ray.get(mailbox.begin.remote(node == 0, nodes))
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache/remint")
    with _run_folder(cache) as home:
        here = home / "code"
        unpack(ray.get(code), here)
        for archive in checkpoints:
            unpack(ray.get(archive), home / "checkpoints")
        environment = {**os.environ, **config["environment"], "PYTHONPATH": f"{here}/src:{here}", "REMINT_HOME": str(home)}
        _fetch_data(config["fetch"], here, {**environment, CACHE: str(cache)}, home / "events-fetch.jsonl", tell)
        own = f"{ray.util.get_node_ip_address()}:{_free_port()}" if node == 0 else None  # type: ignore[no-untyped-call]
        address, _, port = collective.broadcast_from_rank_zero(own).rpartition(":")
        environment |= {"MASTER_ADDR": address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": config["run"]}
        ranks = _Ranks(config, node, nodes, here, home, environment)
        try:
            _follow(ranks, tell, lambda: ray.get(mailbox.stopping.remote()))
        finally:
            ranks.stop()


def _follow(ranks: _Ranks, tell: Callable[..., None], stopping: Callable[[], bool]) -> None:
    """Report what the ranks do, and stop them when the job asks for it, until all have ended."""
    stopped = False
    while True:
        ended = ranks.ended()  # before the reports: nothing is left unsaid
        for event in ranks.new_events():
            tell("event", event)
        if ranks.leads:
            for archive, steps in ranks.new_checkpoints():
                tell("checkpoint", archive, steps)
        if ended:
            break
        if not stopped and stopping():
            stopped = True
            ranks.signal(signal.SIGTERM)
        time.sleep(EVERY)
    if failed := ranks.failed():
        if not stopped and not ranks.told_error:
            tell("failed", failed)
            raise RuntimeError(failed)
    elif ranks.leads:
        tell("trained", pack(ranks.here / ranks.config["out"]))


class _Ranks:
    """The rank processes of this machine."""

    def __init__(self, config: Config, node: int, nodes: int, here: Path, home: Path, environment: dict[str, str]) -> None:
        self.config, self.here, self.home, self.leads = config, here, home, node == 0
        self.told_error = False
        devices = config["devices"]
        self._sent: set[str] = set()
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
            self.stop()
        return None not in codes

    def failed(self) -> str:
        """Return what the first rank that failed said last; "" if none failed."""
        for process, log in zip(self._processes, self._logs, strict=True):
            if process.returncode:
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                return f"rank on {socket.gethostname()} ended with status {process.returncode}: " + "\n".join(lines)
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
                    self.told_error |= event["event"] == "error"
                    if event["event"] == "error" or (self.leads and local == 0):
                        yield event

    def new_checkpoints(self) -> Iterator[tuple[bytes, list[str]]]:
        """Yield each checkpoint that was not sent, with the names of all that are there."""
        steps = sorted((self.home / "checkpoints").glob("*/step-*"))
        names = [f"{step.parent.name}/{step.name}" for step in steps]
        for step, name in zip(steps, names, strict=True):
            if name not in self._sent:
                with contextlib.suppress(OSError):  # it was removed meanwhile
                    archive = pack(step, name)
                    self._sent.add(name)
                    yield archive, names

    def signal(self, sign: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)

    def stop(self) -> None:
        """End the ranks: SIGTERM, GRACE seconds, SIGKILL."""
        for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            if all(process.poll() is not None for process in self._processes):
                return
            self.signal(sign)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
                time.sleep(0.05)


@contextlib.contextmanager
def _run_folder(cache: Path) -> Iterator[Path]:
    """Yield the folder of one attempt. Folders of attempts whose process died are removed first."""
    runs = cache / "runs"
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in runs.iterdir():
        with contextlib.suppress(OSError):
            handle = os.open(old, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(handle)
    folder = Path(tempfile.mkdtemp(dir=runs))
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _fetch_data(command: list[str], here: Path, environment: dict[str, str], events: Path, tell: Callable[..., None]) -> None:
    """Let the commit's own code bring the data to this machine."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=here,
        env={**environment, "REMINT_EVENTS": str(events)},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        failed = f"{socket.gethostname()} could not fetch the data: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        for event in map(json.loads, events.open()) if events.exists() else ():
            if event["event"] == "error":
                tell("event", event | {"message": f"{socket.gethostname()} could not fetch the data: {event['message']}"})
        tell("failed", failed)
        raise RuntimeError(failed)


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def pack(folder: Path, name: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, name or folder.name)
    return content.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")
