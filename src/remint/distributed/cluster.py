"""Train on several machines, by Ray Train: it starts, watches and restarts the machines' ranks.

REMINT_CLUSTER is the cluster's address (connection.py); by default it is the one that runs on this machine. Each machine runs
``node.run_node``. It gets the commit's code and the checkpoints from here, and the data from the DVC remote; events, checkpoints
and the trained model come back through an actor on this machine, the mailbox. So the checkpoints of a training lie with the job,
as those of a training on one machine do, and either goes on from the other's.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.distributed import mailbox, node, ranks
from remint.distributed.connection import cluster_address, connect
from remint.errors import Interrupted, RemintError, ResourceError, StepError, by_name
from remint.runtime import processes, scratch
from remint.runtime.events import emit

PARENT_EVENTS = {"started", "ended"}  # events that this process emits itself
RESTARTS = 1000  # of all machines, after a lost rank or machine ...
STARTS = 3  # ... of which so many may follow each other without a new checkpoint
EVERY = 0.5  # seconds between two looks into the mailbox
WAITING = 30.0  # seconds between two lines about a cluster that is full
LOST = 60.0  # seconds without an answer of the mailbox after which the cluster is lost
PATIENCE = 20.0  # seconds after a stop in which checkpoints may come; less than the caller waits (processes.GRACE)


@dataclass(frozen=True)
class Nodes:
    """Machines of a training, and what each of them needs."""

    least: int
    most: int
    devices: int  # ranks of each
    threads: int  # CPU threads of each rank


def train_on_nodes(
    nodes: Nodes,
    command: Sequence[str],  # arguments of python that train, in a checkout of the commit
    fetch: Sequence[str],  # arguments of python that bring the data to a machine
    environment: Mapping[str, str],  # variables of the job that decide the result: no secrets
    code: bytes,  # tar archive of the commit's files
    checkpoints: Path,  # folder of this training's checkpoints
    intact: Sequence[Path],  # these of them that a machine may go on from
    out: Path,  # of the trained model, below the current folder
) -> None:
    """Train on the machines of a cluster until ``out`` is written, with checkpoints in ``checkpoints``.

    Waits for machines that are busy. Raises ResourceError if there is no cluster, UserError if ray is not installed, the error of
    a rank with its class, StepError if ranks fail again and again or the cluster was lost, and Interrupted when asked to stop;
    then the ranks have written a checkpoint.
    """
    with _connected() as ray:
        _wait_for_machines(ray, nodes)
        config = {"command": list(command), "fetch": list(fetch), "environment": dict(environment), "run": uuid.uuid4().hex}
        config["checkpoints"] = str(checkpoints.parent)
        _Driver(ray, nodes, config, code, checkpoints, intact, out).run()


def machines() -> list[str]:
    """Return the host of each machine of the cluster, which has run a task there. Raises as ``train_on_nodes``."""
    with _connected() as ray:
        ray.cloudpickle.register_pickle_by_value(node)
        hosts = ray.remote(num_cpus=0)(node.host)
        asked = [hosts.options(scheduling_strategy=_on(ray, each["NodeID"])) for each in ray.nodes() if each["Alive"]]
        try:
            return sorted(ray.get([each.remote() for each in asked], timeout=LOST))
        except ray.exceptions.RayError as error:
            raise ResourceError(f"a machine of the Ray cluster runs no task: {str(error).strip().splitlines()[0]}") from error


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield ray, connected to the cluster of trainings while the block runs."""
    ray = connect("training.nodes", "train", cluster_address() or "auto")
    try:
        yield ray
    finally:
        ray.shutdown()


def _on(ray: Any, machine: str) -> Any:
    """Return the strategy that places an actor or task on one machine, and nowhere else."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(machine, soft=False)


def _wait_for_machines(ray: Any, nodes: Nodes) -> None:
    """Wait until enough machines have free processors. Says for what it waits."""
    said = 0.0
    while _free_machines(ray, nodes) < nodes.least:
        if time.monotonic() - said > WAITING:
            said = time.monotonic()
            _say_waiting(ray, nodes)
        if processes.stopping.wait(1.0):
            raise Interrupted(processes.AGAIN)


def _free_machines(ray: Any, nodes: Nodes) -> int:
    needs = _resources(ray, nodes)
    free = ray._private.state.available_resources_per_node().values()
    return sum(all(each.get(name, 0.0) >= count for name, count in needs.items()) for each in free)


def _say_waiting(ray: Any, nodes: Nodes) -> None:
    needs = " and ".join(f"{count:g} free {name}{'s' if count > 1 else ''}" for name, count in _resources(ray, nodes).items())
    emit("waiting", machines=nodes.least, needs=needs, free=_free_machines(ray, nodes))


def _resources(ray: Any, nodes: Nodes) -> dict[str, float]:
    """Return what the ranks of one machine take: GPUs where the cluster has any."""
    cpus = {"CPU": float(nodes.devices * nodes.threads)}
    return cpus | ({"GPU": float(nodes.devices)} if ray.cluster_resources().get("GPU") else {})


class _Driver:
    """The job's side of one training."""

    def __init__(
        self,
        ray: Any,
        nodes: Nodes,
        config: dict[str, Any],
        code: bytes,
        checkpoints: Path,
        intact: Sequence[Path],
        out: Path,
    ) -> None:
        self.ray, self.nodes, self.checkpoints, self.out = ray, nodes, checkpoints, out
        self.trained, self.size = False, 0
        self.starts = 0  # since the last checkpoint
        self.stopped = 0.0  # when a stop was seen
        self.failures: list[str] = []  # of the last start: a rank that dies lets the others fail too
        self.errors: list[RemintError] = []
        here = _on(ray, ray.get_runtime_context().get_node_id())
        for module in (node, ranks, mailbox):
            ray.cloudpickle.register_pickle_by_value(module)
        names = {f"{checkpoints.name}/{step.name}": step for step in intact}
        kept = {name: [ray.put(ranks.pack(step, name))] for name, step in names.items()}
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(mailbox.Mailbox)
        self.mailbox = actor.remote([ray.put(code)], kept)
        self.config = {**config, "mailbox": self.mailbox, "devices": nodes.devices, "threads": nodes.threads, "out": str(out)}

    def run(self) -> None:
        """Run the training until the model is here."""
        failed: list[Exception] = []

        def fit() -> None:
            try:
                self._trainer().fit()
            except Exception as error:  # noqa: BLE001  it is raised below
                failed.append(error)

        thread = threading.Thread(target=fit, name="ray train", daemon=True)
        thread.start()
        said = time.monotonic()
        while thread.is_alive() and not self._is_over():
            self._read_mailbox()
            if not self.size and time.monotonic() - said > WAITING:
                said = time.monotonic()
                _say_waiting(self.ray, self.nodes)
            thread.join(EVERY)
        self._read_mailbox()
        if self.errors:
            raise self.errors[0]
        if processes.stopping.is_set():
            raise Interrupted(processes.AGAIN)
        if not self.trained:
            whys = [_last_line(why) for why in self.failures or map(str, failed)] or ["no machine sent a model"]
            raise StepError(f"the training on {self.size or self.nodes.least} machines failed: {'; '.join(whys)}")

    def _is_over(self) -> bool:
        """Return whether another start would not help, or a stop takes too long. Ray's workers end with this connection."""
        hopeless = any(not isinstance(error, Interrupted) for error in self.errors)  # a stopped rank still sends its checkpoint
        if processes.stopping.is_set():
            self.stopped = self.stopped or time.monotonic()
        late = self.stopped and time.monotonic() - self.stopped > PATIENCE  # a machine that was cut off, and all wait for it
        return hopeless or bool(late) or self.starts > STARTS

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        nodes, needs = self.nodes, _resources(self.ray, self.nodes)
        return DataParallelTrainer(
            node.run_node,
            train_loop_config=self.config,
            scaling_config=ScalingConfig(
                num_workers=nodes.least if nodes.least == nodes.most else (nodes.least, nodes.most),  # type: ignore[arg-type]
                use_gpu="GPU" in needs,
                resources_per_worker=needs,
                placement_strategy="STRICT_SPREAD",  # one worker for each machine
            ),
            run_config=RunConfig(
                name=self.config["run"],
                storage_path=str(Path(tempfile.gettempdir()) / "remint-ray"),  # Ray keeps nothing there
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )

    def _read_mailbox(self) -> None:
        """Receive what the machines sent. Raises StepError if the cluster is lost."""
        try:
            messages = self.ray.get(self.mailbox.take.remote(processes.stopping.is_set()), timeout=LOST)
        except Exception as error:
            raise StepError(
                f"the Ray cluster was lost ({type(error).__name__}): checkpoints are in {self.checkpoints}; run again to continue"
            ) from error
        for kind, *content in messages:
            getattr(self, f"_on_{kind}")(*content)

    def _on_begin(self, size: int) -> None:
        grown = size > self.size  # also at the start
        emit("machines" if grown else "machine_lost", machines=size, processes=size * self.nodes.devices)
        self.size = size
        self.starts += 1
        if self.starts <= STARTS:  # the last one is not waited for
            self.failures = []

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        event.pop("at", None)
        if kind == "error":
            self.errors.append(by_name(event["kind"], event["message"]))
        elif kind not in PARENT_EVENTS:
            emit(kind, **event)

    def _on_checkpoint(self, _: str, archive: Any, names: list[str]) -> None:
        """Keep a checkpoint, and those beside which it was written."""
        self.starts = 0
        with scratch.folder(beside=self.checkpoints) as temporary:
            ranks.unpack(self.ray.get(archive), temporary)
            for step in temporary.glob(f"{self.checkpoints.name}/step-*"):
                shutil.rmtree(self.checkpoints / step.name, ignore_errors=True)
                step.rename(self.checkpoints / step.name)
        for old in self.checkpoints.glob("step-*"):
            if f"{self.checkpoints.name}/{old.name}" not in names:
                shutil.rmtree(old)

    def _on_record(self, name: str, archive: Any) -> None:
        """Keep a record that a training leaves beside its checkpoints."""
        with scratch.folder(beside=self.checkpoints) as temporary:
            ranks.unpack(self.ray.get(archive), temporary)
            shutil.rmtree(self.checkpoints / name, ignore_errors=True)
            (temporary / name).replace(self.checkpoints / name)

    def _on_failed(self, why: str) -> None:
        self.failures.append(why)

    def _on_trained(self, archive: Any) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with scratch.folder(beside=self.out) as temporary:
            ranks.unpack(self.ray.get(archive), temporary)
            shutil.rmtree(self.out, ignore_errors=True)
            (temporary / self.out.name).rename(self.out)
        self.trained = True


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
