"""Training loop: phases in turn, averaged weights, checkpoints, bit-exact resumption.

The loop is the same for all families. All randomness is a function of (seed, step, position in the global batch): one
process and N processes see the same numbers, and a resumed training equals an uninterrupted one.

Shapes: P phases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from remint.distributed.world import World
from remint.errors import Interrupted
from remint.models.contract import Model, Phase
from remint.runtime.events import emit
from remint.settings.recipe import TrainingSettings
from remint.training import compilation, curve, divergence
from remint.training.adamw import AdamW
from remint.training.checkpoint import Checkpoints
from remint.training.ema import AveragedModel
from remint.training.feed import Feed
from remint.training.guard import Guard
from remint.training.state import TrainingState
from remint.training.step import StepRunner
from remint.training.validation import Score

BLOCK = 5  # steps of a block, after which the host looks at the state (step.py). The result does not depend on it
SLOW = 1.0  # seconds of a step above which a block is one step: a stop must not wait for long


def training_loop(
    model: Model,  # the served model; on the device, with its buffers set
    phases: Sequence[Phase],  # run once per step, in this order
    feed: Feed,  # of the training split: uint8 images or float32 rows, and int64 labels
    settings: TrainingSettings,  # threads, devices and collapse are not used here: the caller has applied them
    *,
    score: Score | None,  # of the averaged model on the validation split, lower is better; None: it has no likelihood
    guard: Guard | None,  # watches the averaged model for a collapse; None: no guard
    world: World,  # this process among the others
    machine: dict[str, Any],  # fingerprint of this machine
    checkpoints: Checkpoints,  # to resume from and to write to; locked by rank 0
    stop: Callable[[], bool],  # whether this process was asked to stop
) -> TrainingState:
    """Train from the newest intact checkpoint and return the state after the last step.

    ``state.served()`` of the result has the averaged weights of the best score, and ``state.ending`` gives the reason of
    the end: a collapsed model ends the training at the best row so far. Every process of ``world`` calls it with the same
    arguments. Emits progress about once a second, metrics with each row, and the events of divergence.py.

    Raises Interrupted, with a checkpoint of the step just finished, when any process is asked to stop;
    StepError, with a record on disk, when it diverged more often than the settings allow; StorageError when a checkpoint
    cannot be written.
    """
    model.requires_grad_(False)
    for phase in phases:
        phase.train().requires_grad_(False)
    runners = [
        world.data_parallel(phase, settings.batch_size) for phase in phases
    ]  # before the average: it gives all ranks the weights of rank 0
    state = _initial_state(model, phases, settings, world, machine)
    initial = state.tensors(world.gather(state.losses_P)), state.notes()
    _resume(state, settings, checkpoints, world)
    state.ending = curve.ending(state, guard, settings)
    step_runner = StepRunner(state, runners, feed, settings, world)
    if state.ending is None:
        state.compiled = initial[1]["compiled"] = compilation.choose(step_runner, state, settings, world)
    report_progress = _Progress(settings.steps, world)

    stopped, length = False, BLOCK

    def stops_early() -> bool:
        return world.size == 1 and (stopped or stop())  # several ranks agree to stop at the end of a block

    while state.ending is None:
        end, began = _block_end(state.step, length, settings), time.monotonic()
        slow = SLOW * (end - state.step)  # seconds
        stopped = _run_block(step_runner, state, end, report_progress, stops_early) or stopped
        problem = _make_again_if_broken(step_runner, state, settings, world)
        if problem is None and (state.step == settings.steps or state.step % settings.validate_every == 0):
            problem = curve.end_interval(state, world, score, guard, settings)
        if problem is not None:
            divergence.roll_back(state, problem, initial, settings, checkpoints, world)
            continue

        feed.check()
        stopped = stopped or world.any(stop())
        length = 1 if world.any(time.monotonic() - began > slow) else BLOCK
        regular = state.step % settings.checkpoint_every == 0
        if state.ending or stopped or regular:
            _write_checkpoint(state, settings, checkpoints, world, regular=regular)
        if stopped and not state.ending:
            _interrupt(state, settings.steps, world)
    report_progress(state)
    return state


def _block_end(step: int, length: int, settings: TrainingSettings) -> int:
    """Return the step at which the block from ``step`` ends: after ``length`` steps, or where a row or checkpoint is due."""
    due = [step + every - step % every for every in (settings.validate_every, settings.checkpoint_every)]
    return min(settings.steps, step + length, *due)


def _run_block(
    runner: StepRunner, state: TrainingState, end: int, report_progress: _Progress, stops_early: Callable[[], bool]
) -> bool:
    """Make the steps up to ``end``, one at least. Return whether the block ended before, because ``stops_early`` was true."""
    runner.begin_block()
    while True:
        runner.run(careful=False)
        state.step += 1
        report_progress(state)
        if state.step == end:
            return False
        if stops_early():
            return True


def _make_again_if_broken(runner: StepRunner, state: TrainingState, settings: TrainingSettings, world: World) -> str | None:
    """If a step of the block broke, undo the block, and make its steps one by one, without those that break.

    Returns the reason of a rollback; None: none is due.
    """
    end = state.step
    if not runner.undo_block():
        return None
    while state.step < end:
        runner.begin_block()
        nonfinite = runner.run(careful=True)
        if nonfinite is not None:
            runner.undo_block()
            divergence.count_skip(state, nonfinite, world)
        state.step += 1
        if problem := divergence.too_many_skips(state, settings):
            return problem
    return None


def _initial_state(
    model: Model, phases: Sequence[Phase], settings: TrainingSettings, world: World, machine: dict[str, Any]
) -> TrainingState:
    """Return the state before the first step."""
    optimizers = [AdamW(phase.parameters(), settings.weight_decay) for phase in phases]
    losses_P = torch.zeros(len(phases), dtype=torch.float64, device=world.device)
    return TrainingState(model, phases, optimizers, AveragedModel(model), losses_P, machines=[machine])


class _Progress:
    """Progress event with the last row and the step, about once a second and at the end."""

    def __init__(self, steps: int, world: World) -> None:
        self.steps, self.world, self.started, self.reported = steps, world, time.monotonic(), 0.0

    def __call__(self, state: TrainingState) -> None:
        if self.world.leads and (state.ending or time.monotonic() - self.reported > 1.0):
            self.reported = time.monotonic()
            row = state.rows[-1] if state.rows else {}
            emit("progress", **row | {"step": state.step, "steps": self.steps, "seconds": self.reported - self.started})


def _interrupt(state: TrainingState, steps: int, world: World) -> NoReturn:
    """Raise Interrupted in every process, after rank 0 has written the checkpoint."""
    if world.leads:
        emit("interrupted", step=state.step)
    world.broadcast(0)
    raise Interrupted(f"interrupted after step {state.step} of {steps}: a checkpoint is kept; run again to continue from it")


def _write_checkpoint(
    state: TrainingState, settings: TrainingSettings, checkpoints: Checkpoints, world: World, *, regular: bool
) -> None:
    """Write a checkpoint of the step just finished. ``regular``: a rollback may use it, unless this step was skipped."""
    curve.update_phase_metrics(state, settings, world)
    if regular and not state.consecutive_skips:
        state.rollback_steps = [*state.rollback_steps[-1:], state.step]
    losses_WP = world.gather(state.losses_P)
    if world.leads:
        checkpoints.write(state.step, state.tensors(losses_WP), state.notes(), keep=state.rollback_steps)


def _resume(state: TrainingState, settings: TrainingSettings, checkpoints: Checkpoints, world: World) -> None:
    """Restore the newest intact checkpoint, if there is one."""
    newest = checkpoints.newest() if world.leads else None
    step = world.broadcast(newest or 0)
    if step:
        state.restore(*world.share(lambda: checkpoints.read(step)), world, settings)
    if world.leads:
        checkpoints.preempted.unlink(missing_ok=True)
        if checkpoints.diverged.exists():
            emit("diverged_before", step=step, record=str(checkpoints.diverged))
        if step:
            emit("resumed", step=step)
