"""One machine's part of a training on several: Ray Train calls ``run_node`` on each.

Ray sends this module by value, and ranks.py with it. It imports nothing else of remint, because the machine may have another
remint installed: the ranks run the code of the job's commit, which comes with the job. The environment, secrets too, is that of
the machine's ``ray start``.

    CACHE/runs/.../code/          the commit's code
    CACHE/runs/.../checkpoints/   checkpoints of this attempt, which the rank that leads sends to the job
    CACHE/data/                   prepared datasets (pipelines/fetch.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from remint.distributed.ranks import Config, Ranks, pack, unpack

CACHE = "REMINT_NODE_CACHE"  # folder of the machine; by default ~/.cache/remint
EVERY = 0.5  # seconds between two looks at the ranks
UNHEARD = 60.0  # seconds without an answer of the job after which it is lost, and the ranks end ...
SLOWEST = 1 << 20  # ... and one more for so many bytes that are sent


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
        sent = sum(len(each) for each in content if isinstance(each, bytes))
        ray.get(mailbox.put.remote(kind, *content), timeout=UNHEARD + sent / SLOWEST)

    def stopping() -> bool:
        return bool(ray.get(mailbox.stopping.remote(), timeout=UNHEARD))

    def share(own: str) -> str:
        return str(collective.broadcast_from_rank_zero(own if node == 0 else None))

    code, checkpoints = ray.get(mailbox.begin.remote(node == 0, nodes))
    try:
        with _run_folder() as home:
            unpack(ray.get(code), home / "code")
            for archive in checkpoints.values():
                unpack(ray.get(archive), home / "checkpoints")
            address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
            lead = partial(share, f"{address}:{_free_port()}")
            _run_ranks(config, node, nodes, home, _interface(address), lead, tell, stopping)
    except ray.exceptions.GetTimeoutError as error:
        raise RuntimeError(f"the job was not heard for {UNHEARD:g} s") from error
    except Exception as error:
        said = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
        tell("failed", f"{said} (on {socket.gethostname()})")
        raise


def _run_ranks(
    config: Config,
    node: int,
    nodes: int,
    home: Path,  # of this attempt
    interface: dict[str, str],  # variables for it
    lead: Callable[[], str],  # returns host and port of the machine that leads, once all machines have called it
    tell: Callable[..., None],
    stopping: Callable[[], bool],
) -> None:
    here = home / "code"
    environment = {
        **interface,
        **os.environ,
        **config["environment"],
        "PYTHONPATH": f"{here}/src:{here}",
        "REMINT_HOME": str(home),
    }
    _fetch_data(config["fetch"], here, {**environment, CACHE: str(_cache())}, home / "events-fetch.jsonl", tell)
    address, _, port = lead().rpartition(":")
    environment |= {"MASTER_ADDR": address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": config["run"]}
    ranks = Ranks(config, node, nodes, here, home, environment)
    try:
        _follow(ranks, tell, stopping)
    finally:  # a checkpoint would not be sent any more
        ranks.stop(patience=0.0)


def _follow(ranks: Ranks, tell: Callable[..., None], stopping: Callable[[], bool]) -> None:
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


def _interface(address: str) -> dict[str, str]:
    """Return the variables that let gloo use the interface of ``address``.

    It would take the address of this machine's name. On many machines that is 127.0.1.1 or 127.0.0.1, by /etc/hosts.
    """
    import psutil  # type: ignore[import-untyped, unused-ignore]

    found = [name for name, all_of in psutil.net_if_addrs().items() if address in [each.address for each in all_of]]
    return {"GLOO_SOCKET_IFNAME": found[0]} if found else {}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
