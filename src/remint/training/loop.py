"""Training loop: phases in turn, averaged weights, checkpoints, bit-exact resumption.

The loop is the same for all families. All randomness is a function of (seed, step, position in the global batch): one
process and N processes see the same numbers, and a resumed training equals an uninterrupted one.

Shapes: N examples, B this process's part of the batch, C channels, H height, W width, P phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.errors import Interrupted
from remint.models.contract import Batch, Model, Phase
from remint.runtime.events import emit
from remint.settings.recipe import TrainingSettings
from remint.training import curve, divergence
from remint.training.checkpoint import Checkpoints
from remint.training.ema import AveragedModel
from remint.training.guard import Guard
from remint.training.randomness import LAYERS, batch_noise, seed_layers
from remint.training.state import TrainingState
from remint.training.validation import Score


def training_loop(
    model: Model,  # the served model; on the device, with its buffers set
    phases: Sequence[Phase],  # run once per step, in this order
    x_NX: Tensor,  # training split on the device: uint8 images or float32 rows
    y_N: Tensor | None,  # its int64 labels on the device; None: no labels
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
    runners = [world.data_parallel(phase) for phase in phases]  # before the average: it gives all ranks the weights of rank 0
    state = _initial_state(model, phases, settings, world, machine)
    initial = state.tensors(world.gather(state.losses_P)), state.notes()
    _resume(state, checkpoints, world)
    state.ending = curve.ending(state, guard, settings)
    step_runner = _StepRunner(state, runners, x_NX, y_N, settings, world)
    report_progress = _Progress(settings.steps, world)

    while state.ending is None:
        step_runner.run()
        state.step += 1

        row_due = state.step == settings.steps or state.step % settings.validate_every == 0
        regular = state.step % settings.checkpoint_every == 0
        decides = row_due or regular or state.step % divergence.steps_between_readings(settings) == 0
        if decides:
            divergence.count_steps(state, step_runner.log, settings, len(x_NX), world)
            problem = divergence.due_rollback(state)
            if problem is None and row_due:
                problem = curve.end_interval(state, world, score, guard, settings)
            if problem is not None:
                divergence.roll_back(state, problem, initial, settings, checkpoints, world)
                continue

        stopped = (decides or world.size == 1) and world.any(stop())
        if stopped and not decides:
            divergence.count_steps(state, step_runner.log, settings, len(x_NX), world)
        report_progress(state)
        if state.ending or stopped or regular:
            _write_checkpoint(state, checkpoints, world, regular=regular)
        if stopped and not state.ending:
            _interrupt(state, settings.steps, world)
    return state


def _initial_state(
    model: Model, phases: Sequence[Phase], settings: TrainingSettings, world: World, machine: dict[str, Any]
) -> TrainingState:
    """Return the state before the first step."""
    optimizers = [
        AdamW(phase.parameters(), betas=phase.betas, weight_decay=settings.weight_decay, fused=True) for phase in phases
    ]
    for optimizer in optimizers:
        _create_moments(optimizer)
    losses_P = torch.zeros(len(phases), dtype=torch.float64, device=world.device)
    return TrainingState(model, phases, optimizers, AveragedModel(model), losses_P, machines=[machine])


def _create_moments(optimizer: Optimizer) -> None:
    """Make the moments of an optimizer, zero, by a step that changes nothing."""
    (group,) = optimizer.param_groups
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.found_inf = torch.ones((), device=group["params"][0].device)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()


class _StepRunner:
    """Runner of the step that follows ``state.step``. The loop advances ``state.step``."""

    def __init__(
        self,
        state: TrainingState,
        runners: Sequence[nn.Module],  # the phases, wrapped where N ranks average their gradients
        x_NX: Tensor,
        y_N: Tensor | None,
        settings: TrainingSettings,
        world: World,
    ) -> None:
        self.state, self.runners, self.x_NX, self.y_N, self.settings, self.world = state, runners, x_NX, y_N, settings, world
        self.rows = world.rows(settings.batch_size)
        self.dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        half_life = settings.ema_images
        self.ema_decay = settings.ema if half_life is None else 0.5 ** (settings.batch_size / half_life)
        self.snapshot = divergence.StepSnapshot([state.model, *state.phases], state.optimizers)
        self.parameters = [list(phase.parameters()) for phase in state.phases]  # walking a module takes a tenth of a small step
        self.log = divergence.StepLog(self.parameters, divergence.READ_EVERY, world.device)
        self.finite = torch.zeros((), device=world.device)
        if len(self.parameters) == 1:
            _require_gradients(self.parameters[0], enabled=True)  # there is no other phase to keep them from

    def run(self) -> None:
        """Run one step: every phase on one batch, then the average.

        A step in which the loss or gradient of a phase is not finite changes nothing. ``log`` has what happened.
        """
        settings, step = self.settings, self.state.step
        seed_layers(settings.seed, LAYERS, step, self.world.rank)
        x_BX, y_B = self._examples(batch_indices(len(self.x_NX), settings.batch_size, settings.seed, step)[self.rows])
        learning_rate = self._learning_rate()
        self.log.begin(step)
        self.snapshot.save()
        broken, losses = self.finite, []
        for index, phase in enumerate(self.state.phases):
            batch = Batch(x_BX, self._noise(index, phase), step / settings.steps, step, y_B)
            phase.schedule(batch.progress)
            optimizer = self.state.optimizers[index]
            optimizer.param_groups[0].update(lr=learning_rate * phase.learning_rate, betas=phase.betas)
            with _gradients_enabled(self.parameters[index], toggle=len(self.parameters) > 1):
                loss, norm, norms = _compute_gradient(self.runners[index], self.parameters[index], batch, settings.precision)
                self.log.write(index, loss, norm, norms)
                broken = torch.maximum(broken, (~norm.isfinite()).to(broken.dtype))
                _step_optimizer(optimizer, norm, settings.gradient_clip, broken)
            losses.append(loss)
        self.state.losses_P += torch.where(broken.bool(), 0.0, torch.stack(losses).double())
        if self.snapshot.undo_where(broken):
            self.state.average.copy_buffers()
        self.state.average.update(self.ema_decay, step, broken)

    def _examples(self, indices_B: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor | None]:
        """Return these examples of the training split, and their labels."""
        places_B = torch.tensor(indices_B, device=self.world.device)
        x_BX = self.x_NX.index_select(0, places_B).to(self.dtype)
        return x_BX, None if self.y_N is None else self.y_N.index_select(0, places_B)

    def _noise(self, index: int, phase: Phase) -> Tensor:
        """Return this rank's rows of the noise of one phase."""
        seed, step = self.settings.seed, self.state.step
        noise_BN = batch_noise(self.rows, phase.noise_size, seed=seed, step=step, phase=index, device=self.world.device)
        return noise_BN.to(self.dtype)

    def _learning_rate(self) -> float:
        """Return the learning rate of this step; each phase multiplies it by its own factor."""
        settings, state = self.settings, self.state
        factor = learning_rate_factor(state.step, settings.steps, settings.warmup, settings.final_learning_rate)
        return settings.learning_rate * factor * divergence.rollback_factor(state, settings)


@contextmanager
def _gradients_enabled(parameters: Sequence[nn.Parameter], *, toggle: bool) -> Iterator[None]:
    """Enable gradients of the phase's parameters, and of no others, while the block runs; then drop the gradients."""
    if toggle:
        _require_gradients(parameters, enabled=True)
    yield
    for parameter in parameters:
        parameter.grad = None
    if toggle:
        _require_gradients(parameters, enabled=False)


def _require_gradients(parameters: Sequence[nn.Parameter], *, enabled: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = enabled


def _compute_gradient(
    runner: nn.Module, parameters: Sequence[nn.Parameter], batch: Batch, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Set the gradients of a phase's parameters; return its loss and their 2-norm, of shape (), and each parameter's norm.

    The norm is not finite where the gradient is not, and where the loss of any rank is not.
    """
    with torch.autocast(batch.x_BX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss: Tensor = runner(batch)
    loss.backward(loss.detach() * 0.0 + 1.0)  # type: ignore[no-untyped-call]  # NaN in place of 1 if the loss is not finite
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # it took no part in this loss
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    norms = torch.stack(torch._foreach_norm(gradients))
    return loss.detach(), torch.linalg.vector_norm(norms), norms


def _step_optimizer(optimizer: Optimizer, norm: Tensor, clip: float, broken: Tensor) -> None:
    """Step a phase's optimizer, unless ``broken`` is 1, with the gradient scaled down to a norm of ``clip`` if it is greater."""
    (group,) = optimizer.param_groups
    if clip:
        nn.utils.clip_grads_with_norm_(group["params"], clip, norm)
    optimizer.found_inf = broken  # type: ignore[attr-defined]  # read by the fused optimizer on the device
    optimizer.step()


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Return the factor of the learning rate in the step after ``step`` steps.

    A straight line up to 1 over the first ``warmup`` of the steps, then half a cosine down to ``final`` in the
    last step (Loshchilov & Hutter, SGDR, 2017).
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))


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


def _write_checkpoint(state: TrainingState, checkpoints: Checkpoints, world: World, *, regular: bool) -> None:
    """Write a checkpoint of the step just finished. ``regular``: a rollback may use it, unless this step was skipped."""
    curve.update_phase_metrics(state, world)
    if regular and not state.consecutive_skips:
        state.rollback_steps = [*state.rollback_steps[-1:], state.step]
    losses_WP = world.gather(state.losses_P)
    if world.leads:
        checkpoints.write(state.step, state.tensors(losses_WP), state.notes(), keep=state.rollback_steps)


def _resume(state: TrainingState, checkpoints: Checkpoints, world: World) -> None:
    """Restore the newest intact checkpoint, if there is one."""
    newest = checkpoints.newest() if world.leads else None
    step = world.broadcast(newest or 0)
    if step:
        state.restore(*checkpoints.read(step), rank=world.rank)
    if world.leads:
        checkpoints.preempted.unlink(missing_ok=True)
        if checkpoints.diverged.exists():
            emit("diverged_before", step=step, record=str(checkpoints.diverged))
        if step:
            emit("resumed", step=step)
