"""Trainings of the benchmarks: their cases, a bare loop, and remint's loop with everything on.

8 px: 1,078 of scikit-learn's digits, and the default network of each family, in batches of 64. 32 px: as many random images of
256 levels, and convolutional networks small enough for one CPU thread, with a quarter of the batch and of the validation split.

Shapes: N examples, B batch, X the axes of one example.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from remint.distributed.world import World
from remint.models.contract import Batch, Model, Phase
from remint.models.families import family
from remint.records import DataSpec
from remint.settings.recipe import MODEL_SETTINGS, TrainingSettings
from remint.training.checkpoint import Checkpoints
from remint.training.feed import Feed, InMemory
from remint.training.guard import Guard, build_guard
from remint.training.loop import training_loop
from remint.training.state import TrainingState
from remint.training.validation import Score, scorer

LEARNING_RATE = 2e-3
TRAIN = 1078  # examples
VALIDATION = {8: 180, 32: 45}  # examples, by the side of an image
BATCH = {8: 64, 32: 16}
FAMILIES = ("flow", "gan", "vae", "vaegan")
QUICK = ("gan", "vae", "pythae")  # at 8 px
INTERVAL = 100  # steps between two rows of the curve, the default; a timed training has one, or three
CRITIC = {"network": "dcgan", "width": 8}
CONVOLUTIONAL: dict[str, dict[str, Any]] = {
    "flow": {"network": "multiscale", "coupling": "affine", "couplings": 2, "width": 8, "blocks": 1},
    "gan": CRITIC,
    "vae": {"network": "residual", "width": 4, "blocks": 1, "mixtures": 1, "pixels": "mean"},
    "vaegan": {"network": "residual", "width": 4, "blocks": 1, "mixtures": 1, "pixels": "mean", "critic": CRITIC},
}
WARM = 24  # steps of a compiled training that are timed apart, because they compile


@dataclass(frozen=True)
class Timing:
    """One timed training."""

    steps: int
    seconds: float
    processor_seconds: float
    compile_seconds: float = 0.0  # not part of the above

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return self.seconds / self.steps

    @property
    def processor_step(self) -> float:
        """Seconds of processor time of one step."""
        return self.processor_seconds / self.steps


@dataclass(frozen=True)
class Training:
    """A built model with its data, before the first step."""

    model: Model
    phases: list[Phase]
    x_NX: Tensor
    validation_NX: Tensor
    spec: DataSpec


def steps_of(name: str, side: int) -> int:
    """Return the number of steps of one timed training of a family or a library: some seconds."""
    return 3 * INTERVAL if side == 8 and name in QUICK else INTERVAL


def timed(steps: int, work: Callable[[], object]) -> Timing:
    """Call ``work``, which makes ``steps`` steps, and return its time."""
    began, processor = time.perf_counter(), time.process_time()
    work()
    return Timing(steps, time.perf_counter() - began, time.process_time() - processor)


def images(side: int) -> tuple[Tensor, Tensor, DataSpec]:
    """Return the training and the validation split, uint8, and their form."""
    if side == 8:
        from sklearn.datasets import load_digits

        x_NX = torch.from_numpy(load_digits().images.astype("uint8")[:, None])
        spec = DataSpec(shape=(1, 8, 8), levels=17)
    else:
        spec = DataSpec(shape=(1, side, side), levels=256)
        x_NX = torch.randint(0, 256, (2 * TRAIN, *spec.shape), dtype=torch.uint8)
    return x_NX[:TRAIN], x_NX[TRAIN:][: VALIDATION.get(side, TRAIN)], spec


def build(name: str, side: int, model: dict[str, Any] | None = None) -> Training:
    """Return the training of a family. ``model``: its settings; None: those at the top of this file."""
    torch.manual_seed(0)
    x_NX, validation_NX, spec = images(side)
    chosen = (CONVOLUTIONAL[name] if side == 32 else {}) if model is None else model
    settings = MODEL_SETTINGS[name].model_validate(chosen)
    built = family(name).build(settings, spec)
    built.initialise(x_NX)
    return Training(built, family(name).phases(built, settings), x_NX, validation_NX, spec)


def bare_steps(
    x_NX: Tensor,
    batch: int,
    steps: int,
    losses: Sequence[Callable[[Tensor, int], Tensor]],
    groups: Sequence[Sequence[nn.Parameter]],
) -> None:
    """Train in the shortest way: a random batch, and for each phase a loss, its gradient and one step of fused AdamW.

    ``losses``: of each phase, a function of the batch and the step; ``groups``: the parameters that it trains.
    """
    optimizers = [AdamW(group, lr=LEARNING_RATE, fused=True) for group in groups]
    several = len(groups) > 1
    for group in groups if several else ():
        enable(group, False)
    for step in range(steps):
        x_BX = x_NX[torch.randint(len(x_NX), (batch,))].float()
        for loss_of, group, optimizer in zip(losses, groups, optimizers, strict=True):
            if several:
                enable(group, True)
            loss = loss_of(x_BX, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if several:
                enable(group, False)


def enable(parameters: Sequence[nn.Parameter], enabled: bool) -> None:
    """Enable or disable gradients of these parameters."""
    for parameter in parameters:
        parameter.requires_grad = enabled


def bare(name: str, side: int) -> Timing:
    """Time the bare loop of a family's network."""
    training, steps, batch = build(name, side), steps_of(name, side), BATCH[side]

    def loss_of(phase: Phase) -> Callable[[Tensor, int], Tensor]:
        return lambda x_BX, step: phase(Batch(x_BX, torch.randn(batch, phase.noise_size), step / steps, step))

    groups = [list(phase.parameters()) for phase in training.phases]
    return timed(steps, lambda: bare_steps(training.x_NX, batch, steps, [loss_of(phase) for phase in training.phases], groups))


def loop(
    model: Model,
    phases: list[Phase],
    feed: Feed,
    settings: TrainingSettings,
    world: World,
    *,
    stop: Callable[[], bool],
    score: Score | None = None,
    guard: Guard | None = None,
) -> TrainingState:
    """Run remint's training loop, with checkpoints in a temporary folder. ``stop`` is asked after each step of one process."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "benchmark")
        return training_loop(
            model, phases, feed, settings, score=score, guard=guard, world=world, machine={}, checkpoints=checkpoints, stop=stop
        )


def ours(name: str, side: int, *, compiled: bool = False, scored: bool = False) -> Timing:
    """Time remint's loop: average, finiteness, checkpoints, curve and guard on, at their default intervals.

    ``compiled``: with ``training.compile``; the first WARM steps are timed apart. ``scored``: with the score of the validation
    split too.
    """
    timed_steps = steps_of(name, side)
    steps = timed_steps + (WARM if compiled else 0)
    settings = TrainingSettings(
        steps=steps,
        batch_size=BATCH[side],
        learning_rate=LEARNING_RATE,
        collapse=0.6,  # without it, models with a likelihood are not guarded
        validate_every=steps // (timed_steps // INTERVAL),
        compile="on" if compiled else "off",
    )
    training, world = build(name, side), World(0, 1, torch.device("cpu"))
    guard = build_guard(training.model, training.x_NX, training.validation_NX, training.spec, settings, world)
    score = scorer(training.model, training.validation_NX.numpy(), None, training.spec, settings, world) if scored else None
    marks: list[tuple[float, float]] = []  # time and processor time after each step

    def mark() -> bool:
        marks.append((time.perf_counter(), time.process_time()))
        return False

    def run() -> None:
        feed = InMemory(training.x_NX, None)
        state = loop(training.model, training.phases, feed, settings, world, stop=mark, score=score, guard=guard)
        if state.step != steps or guard is None:
            raise SystemExit(f"{name}, {side} px: the training ended at step {state.step} of {steps}, or had no guard")

    began, processor = time.perf_counter(), time.process_time()
    timing = timed(steps, run)
    if not compiled:
        return timing
    warm, warm_processor = marks[WARM - 1][0] - began, marks[WARM - 1][1] - processor
    seconds, processor_seconds = timing.seconds - warm, timing.processor_seconds - warm_processor
    rest = Timing(timed_steps, seconds, processor_seconds)
    return replace(rest, compile_seconds=warm - WARM * rest.step)


def silence_events() -> None:
    """Write events nowhere: do not measure the terminal."""
    os.environ["REMINT_EVENTS"] = os.devnull
