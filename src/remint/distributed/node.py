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
from functools import partial
from pathlib import Path
from typing import Any

CACHE = "REMINT_NODE_CACHE"  # folder of the machine; by default ~/.cache/remint
EVERY = 0.5  # seconds between two looks at the ranks
GRACE = 30.0  # seconds that ranks have to write a checkpoint
RECORDS = ("diverged", "PREEMPTED")  # that a training leaves beside its checkpoints
LOG_LINES = 60  # of a rank that failed

Config = dict[str, Any]


def run_node(config: Config) -> None:
    """Run this machine's ranks to their end. ``config``: what remint.distributed.cluster sends.

    An error of a user goes to the mailbox, and the call returns: to run again would not help. If a rank died, RuntimeError is
    raised: Ray starts all machines again.
    """
    import ray
    from ray import train
    from ray.train import collective

    context, mailbox = train.get_context(), config["mailbox"]
    node, nodes = context.get_world_rank(), context.get_world_size()

    def tell(kind: str, *content: Any) -> None:
        ray.get(mailbox.put.remote(kind, *content))

    def share(own: str) -> str:
        return str(collective.broadcast_from_rank_zero(own if node == 0 else None))

    code, checkpoints = ray.get(mailbox.begin.remote(node == 0, nodes))
    try:
        with _run_folder() as home:
            unpack(ray.get(code), home / "code")
            for archive in checkpoints.values():
                unpack(ray.get(archive), home / "checkpoints")
            here = f"{ray.util.get_node_ip_address()}:{_free_port()}"  # type: ignore[no-untyped-call]
            _run_ranks(config, node, nodes, home, partial(share, here), tell, lambda: ray.get(mailbox.stopping.remote()))
    except Exception as error:
        said = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
        tell("failed", f"{said} (on {socket.gethostname()})")
        raise


def _run_ranks(
    config: Config,
    node: int,
    nodes: int,
    home: Path,  # of this attempt
    lead: Callable[[], str],  # returns host and port of the machine that leads, once all machines have called it
    tell: Callable[..., None],
    stopping: Callable[[], bool],
) -> None:
    here = home / "code"
    environment = {**os.environ, **config["environment"], "PYTHONPATH": f"{here}/src:{here}", "REMINT_HOME": str(home)}
    _fetch_data(config["fetch"], here, {**environment, CACHE: str(_cache())}, home / "events-fetch.jsonl", tell)
    address, _, port = lead().rpartition(":")
    environment |= {"MASTER_ADDR": address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": config["run"]}
    ranks = _Ranks(config, node, nodes, here, home, environment)
    try:
        _follow(ranks, tell, stopping)
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
            for name, archive, names in ranks.new_checkpoints():
                tell("checkpoint", name, archive, names)
        if ended:
            break
        if not stopped and stopping():
            stopped = True
            ranks.signal(signal.SIGTERM)
        time.sleep(EVERY)
    for name, archive in ranks.records() if ranks.leads else ():
        tell("record", name, archive)
    if failed := ranks.failed():
        if not stopped and not ranks.told_error:
            raise RuntimeError(failed)
    elif ranks.leads:
        tell("trained", pack(ranks.here / ranks.config["out"]))


class _Ranks:
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
            self.stop()
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

    def stop(self) -> None:
        """End the ranks: SIGTERM, GRACE seconds, SIGKILL."""
        for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            if all(process.poll() is not None for process in self._processes):
                return
            self.signal(sign)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
                time.sleep(0.05)


def _cache() -> Path:
    return Path(os.environ.get(CACHE) or Path.home() / ".cache/remint")


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """Yield the folder of one attempt. Folders of attempts whose process died are removed first."""
    runs = _cache() / "runs"
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
        failed = f"the data could not be fetched: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        for event in map(json.loads, events.open()) if events.exists() else ():
            if event["event"] == "error":
                tell("event", event | {"message": f"{socket.gethostname()} could not fetch the data: {event['message']}"})
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
