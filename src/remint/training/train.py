"""One training, from settings and data to a folder that can be registered.

    outs/trained/PIPELINE/
        weights.safetensors   averaged weights of the best score, and buffers
        model.json            family, settings and data spec, to build the network again
        critic.safetensors    the critic as of the same step, if the family has one; outside the version's key
        training.json         records.TrainedModel
        samples.safetensors   samples for a fixed seed (models/probe.py)
        curve.csv             step, losses and phase metrics, coverage and reached, validation
        manifest.json         SHA-256 of each file

The same training gives the same bytes: the files contain no time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from remint.data.arrays import Dataset, Split
from remint.data.blocks import MEMORY
from remint.distributed.launch import run_ranks
from remint.distributed.machine import KERNEL_VARIABLES, check_devices, deterministic, fingerprint
from remint.distributed.world import World, join, launched
from remint.errors import Interrupted
from remint.models import probe
from remint.models.bundle import save_critic, save_model
from remint.models.contract import Model
from remint.models.families import family
from remint.models.labels import Labels
from remint.records import TrainedModel, digest
from remint.runtime.events import COMPILE
from remint.runtime.manifest import whole_folder
from remint.runtime.processes import GRACE, stopping
from remint.settings.recipe import Recipe
from remint.training import curve
from remint.training.checkpoint import Checkpoints
from remint.training.feed import open_feed
from remint.training.guard import build_guard, evenly_spaced
from remint.training.loop import training_loop
from remint.training.randomness import INITIAL, seed_layers
from remint.training.state import TrainingState
from remint.training.validation import scorer

RECORD, CURVE = "training.json", "curve.csv"
INITIAL_BYTES = 64 << 20  # of the training split, from which the model is initialised


def train_pipeline(
    recipe: Recipe,
    pipeline: str,
    dataset: Dataset,
    *,
    checkpoints: Path,
    out: Path,
    code_sha256: str,
    command: Sequence[str],
    pack: Callable[[], bytes] | None = None,
) -> TrainedModel | None:
    """Train ``recipe`` on ``dataset``, write ``out`` and return its record; None on a rank other than the first.

    Resumes from a checkpoint if there is one.

    ``checkpoints``: folder of the checkpoints of all trainings. ``code_sha256``: digest of the code that decides the
    weights. ``command``: arguments of python that run this training again; with ``devices: N`` they start N processes, and
    each of them calls this function; with ``nodes: N`` on N machines, which get the code that ``pack`` returns. Call it in the
    main thread: it handles SIGINT and SIGTERM.

    Raises ResourceError if this machine lacks the devices, and the errors of training_loop.
    """
    devices, threads, nodes = recipe.training.devices, recipe.training.threads, recipe.training.nodes
    of_this = {"pipeline": pipeline, "recipe": recipe.resolved(), "dataset": dataset.version.digest, "code": code_sha256}
    kept = Checkpoints(checkpoints, digest(of_this))
    with _stopping_on_signals() as stop:
        if nodes.max > 1 and not launched():
            from remint.distributed import cluster  # ray takes seconds to import

            assert pack is not None
            fetch = ["-m", "pipelines.fetch", recipe.dataset]
            with kept.held(f"the training of {pipeline}"):
                machines = cluster.Nodes(nodes.min, nodes.max, devices, threads)
                cluster.train_on_nodes(
                    machines, command, fetch, _for_nodes(), pack(), kept.folder, kept.intact(), out.relative_to(Path.cwd())
                )
                kept.delete()
            return TrainedModel.read(out / RECORD)
        check_devices(pipeline, int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else devices)
        if devices > 1 and not launched():
            run_ranks(command, devices, threads)
            return TrainedModel.read(out / RECORD)
        with deterministic(threads), join() as world:
            with kept.held(f"the training of {pipeline}") if world.leads else nullcontext():
                try:
                    state = fit(recipe, dataset, world, kept, stop)
                except Interrupted:
                    if world.leads:
                        kept.mark_preempted(stop.seconds)
                    raise
                if world.leads:
                    _write(state, recipe, pipeline, dataset, out, world.size)
                    kept.delete()
            world.broadcast(0)  # all ranks wait until rank 0 has written
        return TrainedModel.read(out / RECORD) if world.leads else None


def _for_nodes() -> dict[str, str]:
    """Return the variables of this process that ranks on other machines need: none of them is a secret."""
    return {name: os.environ[name] for name in (*KERNEL_VARIABLES, COMPILE, MEMORY, "REMINT_DVC_REMOTE") if name in os.environ}


class Stop:
    """Stop request of this process, and the time since it."""

    def __init__(self) -> None:
        self._asked: float | None = None

    def handle_signal(self, *_: object) -> None:
        """Handle a signal: request a stop."""
        self._asked = self._asked or time.monotonic()
        stopping.set()
        if launched():  # a rank that waits for a dead one never finishes its step
            signal.alarm(int(GRACE))

    def __call__(self) -> bool:
        return stopping.is_set()

    @property
    def seconds(self) -> float | None:
        """Seconds since the first signal; None: only another rank got a signal."""
        return None if self._asked is None else time.monotonic() - self._asked


@contextmanager
def _stopping_on_signals() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM as stop requests while the block runs."""
    stop = Stop()
    before = {sign: signal.signal(sign, stop.handle_signal) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        signal.alarm(0)
        for sign, handler in before.items():
            signal.signal(sign, handler)
        stopping.clear()


def fit(recipe: Recipe, dataset: Dataset, world: World, checkpoints: Checkpoints, stop: Callable[[], bool]) -> TrainingState:
    """Build the model, initialise it from the training split, and run the loop."""
    settings, spec = recipe.training, dataset.spec
    chosen = family(recipe.family)
    seed_layers(settings.seed, INITIAL)
    model = chosen.build(recipe.model, spec)
    train, validation = dataset.train, dataset.validation
    if settings.precision == "fp64":
        model.double()
    _initialise(model, train)
    model.to(world.device)
    phases = [phase.to(world.device) for phase in chosen.phases(model, recipe.model)]
    if settings.precision == "fp64":
        phases = [phase.double() for phase in phases]
    score = scorer(model, validation.x_NX, validation.y_N, spec, settings, world)
    watch = build_guard(model, train.x_NX, validation.x_NX, spec, settings, world)
    machine = fingerprint(world.device, settings.threads, world.size)
    with open_feed(train, settings, world) as feed:
        return training_loop(
            model,
            phases,
            feed,
            settings,
            score=score,
            guard=watch,
            world=world,
            machine=machine,
            checkpoints=checkpoints,
            stop=stop,
        )


def _initialise(model: Model, train: Split) -> None:
    """Initialise the model from the training split, or from evenly spaced examples of a large one."""
    count = max(1, min(len(train), INITIAL_BYTES * len(train) // train.x_NX.nbytes))
    y_N = None if train.y_N is None else torch.tensor(evenly_spaced(train.y_N, count))
    model.initialise(torch.tensor(evenly_spaced(train.x_NX, count)), y_N)
    for labels in model.modules():
        if isinstance(labels, Labels) and train.y_N is not None:
            labels.fit(torch.tensor(train.y_N))  # of all examples: a rare class has a share too


def _write(state: TrainingState, recipe: Recipe, pipeline: str, dataset: Dataset, out: Path, world_size: int) -> None:
    assert state.ending is not None
    served = state.served_row
    *earlier, machine = state.machines
    if state.compiled:
        machine = {**machine, "compiled": True}
    with whole_folder(out) as folder:
        weights_sha256 = save_model(folder, state.served().cpu(), recipe.family, recipe.model, dataset.spec)
        if critic := state.served_critic():
            save_critic(folder, critic)
        TrainedModel(
            pipeline=pipeline,
            dataset=dataset.version.digest,
            spec=dataset.spec,
            recipe=recipe.resolved(),
            weights_sha256=weights_sha256,
            steps=state.step,
            best_step=int(served["step"]) if served else state.step,
            ended=state.ending.ended,
            reason=state.ending.reason,
            validation=served.get("validation") if served else None,
            world_size=world_size,
            fingerprint={**machine, "earlier": earlier} if earlier else machine,  # several machines: comparable with none of them
        ).write(folder / RECORD)
        curve.write(state.rows, folder / CURVE)
        probe.record(folder, fingerprint(torch.device("cpu"), recipe.training.threads, 1))
