"""The training loop: phases in turn, an averaged model beside them, checkpoints from which it goes on to the bit.

The loop never asks which family it trains. What is random is a function of (seed, step, place in the global
batch), so one process and N see the same numbers, and a resumed training those of one that never stopped.

Shapes: N examples, B this process's part of the batch, C channels, H height, W width, P phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.errors import Interrupted
from remint.models.contract import Batch, Model, Phase
from remint.runtime.events import emit
from remint.training import curve, divergence
from remint.training.checkpoint import Checkpoints
from remint.training.ema import AveragedModel
from remint.training.guard import Guard
from remint.training.randomness import LAYERS, batch_noise, seed_layers
from remint.training.state import TrainingState
from remint.training.validation import Score


def training_loop(
    model: Model,  # what is served; on the device, its buffers set
    phases: Sequence[Phase],  # what one step runs, in this order
    x_NX: Tensor,  # on the device: the training split, uint8 images or float32 rows
    y_N: Tensor | None,  # int64 on the device: its labels, where there are any
    score: Score | None,  # of the averaged model on the validation split, lower is better; None: it has no likelihood
    guard: Guard | None,  # what looks for a collapse of the averaged model; None: nothing does
    *,
    steps: int,  # how often each phase's optimizer steps
    batch_size: int,  # examples per step, over all processes together
    learning_rate: float,  # the highest, reached after the warm-up; each phase multiplies it by its own
    warmup: float,  # share of the steps over which the learning rate rises from 0
    final_learning_rate: float,  # share of learning_rate that a cosine ends at
    weight_decay: float,  # decoupled, per step, times the learning rate
    gradient_clip: float,  # greatest 2-norm of one phase's gradient; 0: not clipped
    ema: float,  # decay per step of the averaged weights
    ema_images: int | None,  # images (examples) in which the average forgets half; None: as ``ema`` says
    seed: int,  # of order, noise and dropout
    precision: Literal["fp32", "bf16", "fp64"],  # bf16: of matrix products only; fp64: of everything
    validate_every: int,  # steps between two rows of the curve, and scores
    patience: int,  # scores without a new best after which training stops; 0: never
    checkpoint_every: int,  # steps between two checkpoints
    skip_limit: int,  # steps in a row that may be skipped since their loss or gradient is not finite ...
    skip_share: float,  # ... and share of all steps, where that is more
    rollbacks: int,  # times that it goes back to a checkpoint when more were skipped, after which it fails
    rollback_learning_rate: float,  # what the learning rate is multiplied by each time
    world: World,  # this process among the others
    machine: dict[str, Any],  # its fingerprint
    checkpoints: Checkpoints,  # where to go on from; held by rank 0
    stop: Callable[[], bool],  # whether somebody asked this process to stop
) -> TrainingState:
    """Trains, from the newest intact checkpoint on, and returns the state after the last step.

    ``state.served()`` of the result has the averaged weights of the best score, and ``state.ending`` says why it is
    over: a model that has collapsed ends it at the best row so far. Every process of ``world`` calls it with the same
    arguments. Emits progress about once a second, metrics with each row, and what divergence.py does.

    Raises Interrupted, with a checkpoint of the step just finished, where any process is asked to stop;
    StepError, with a record on disk, where it diverged more often than it may; StorageError where a checkpoint cannot
    be written.
    """
    model.requires_grad_(False)
    for phase in phases:
        phase.train().requires_grad_(False)
    runners = [world.shared(phase) for phase in phases]
    optimizers = [AdamW(phase.parameters(), betas=phase.betas, weight_decay=weight_decay, fused=True) for phase in phases]
    decay = ema if ema_images is None else 0.5 ** (batch_size / ema_images)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    losses_P, step_P = torch.zeros((2, len(phases)), dtype=torch.float64, device=world.device)
    state = TrainingState(model, phases, optimizers, AveragedModel(model), losses_P, machines=[machine])
    initial = state.tensors(world.gather(losses_P)), state.notes()
    _resume(state, checkpoints, world)
    state.ending = curve.ending(state, guard, steps=steps, patience=patience)
    tolerance = divergence.Tolerance(steps, skip_limit, skip_share, rollbacks, rollback_learning_rate)
    before = divergence.StepSnapshot([model, *phases], optimizers)
    rows, tell = world.rows(batch_size), _Progress(steps, world)

    while state.ending is None:
        step = state.step
        seed_layers(seed, LAYERS, step, world.rank)
        indices = batch_indices(len(x_NX), batch_size, seed, step)
        places = torch.tensor(indices[rows], device=world.device)
        x_BX = x_NX.index_select(0, places).to(dtype)
        y_B = None if y_N is None else y_N.index_select(0, places)
        rate = learning_rate * learning_rate_factor(step, steps, warmup, final_learning_rate) * tolerance.learning_rate(state)
        before.save()
        for index, phase in enumerate(phases):
            noise_BN = batch_noise(rows, batch_size, phase.noise_size, seed=seed, step=step, phase=index, device=world.device)
            batch = Batch(x_BX, noise_BN.to(dtype), step / steps, step, y_B)
            phase.schedule(batch.progress)
            optimizers[index].param_groups[0].update(lr=rate * phase.learning_rate, betas=phase.betas)
            with _training(phase):
                step_P[index], norm = _gradient(runners[index], phase, batch, precision)
                if not norm.isfinite():
                    divergence.skip(state, divergence.broken(phase, step_P[index], norm, step, indices, world), world)
                    before.restore()
                    break
                _descend(optimizers[index], norm, gradient_clip)
        else:
            state.take(step_P)
            state.average.update(decay, step)
        state.step += 1

        why = tolerance.exceeded(state)
        if why is None and (state.step == steps or state.step % validate_every == 0):
            why = curve.end_interval(state, world, score, guard, steps=steps, patience=patience)
        if why is not None:
            divergence.go_back(state, why, initial, tolerance, checkpoints, world)
            continue
        tell(state)
        stopped, regular = world.any(stop()), state.step % checkpoint_every == 0
        if state.ending or stopped or regular:
            _keep(state, checkpoints, world, regular=regular)
        if stopped and not state.ending:
            _interrupt(state, steps, world)
    return state


@contextmanager
def _training(phase: Phase) -> Iterator[None]:
    """The phase's parameters, and no others, have gradients while the block runs."""
    phase.requires_grad_(True)
    yield
    phase.zero_grad(set_to_none=True)
    phase.requires_grad_(False)


def _gradient(runner: nn.Module, phase: Phase, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
    """The loss of one phase, and the 2-norm of its gradient, which its parameters have then; each of shape ().

    The norm is not finite where the gradient is not, and where the loss of any rank is not.
    """
    with torch.autocast(batch.x_BX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss: Tensor = runner(batch)
    loss.backward(loss.detach() * 0.0 + 1.0)  # type: ignore[no-untyped-call]  # NaN in place of 1 where the loss is not finite
    return loss.detach(), nn.utils.get_total_norm([p.grad for p in phase.parameters() if p.grad is not None])


def _descend(optimizer: Optimizer, norm: Tensor, clip: float) -> None:
    """One step of a phase's optimizer, the gradient brought to a norm of ``clip`` first where it is greater."""
    (group,) = optimizer.param_groups
    if clip:
        nn.utils.clip_grads_with_norm_(group["params"], clip, norm)
    optimizer.step()


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """What the learning rate is multiplied by in the step after ``step`` steps.

    A straight line up to 1 over the first ``warmup`` of the steps, then half a cosine down to ``final`` in the
    last step (Loshchilov & Hutter, SGDR, 2017).
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))


class _Progress:
    """Tells of the last row and the step, about once a second and at the end."""

    def __init__(self, steps: int, world: World) -> None:
        self.steps, self.world, self.began, self.told = steps, world, time.monotonic(), 0.0

    def __call__(self, state: TrainingState) -> None:
        if self.world.leads and (state.ending or time.monotonic() - self.told > 1.0):
            self.told = time.monotonic()
            row = state.rows[-1] if state.rows else {}
            emit("progress", **row | {"step": state.step, "steps": self.steps, "seconds": self.told - self.began})


def _interrupt(state: TrainingState, steps: int, world: World) -> NoReturn:
    """Raises Interrupted, in every process once the checkpoint is written."""
    if world.leads:
        emit("interrupted", step=state.step)
    world.first(0)
    raise Interrupted(f"interrupted after step {state.step} of {steps}: a checkpoint is kept; run again to go on from it")


def _keep(state: TrainingState, checkpoints: Checkpoints, world: World, *, regular: bool) -> None:
    """Writes a checkpoint of the step just finished. ``regular``: one that may be gone back to, if no step is being skipped."""
    curve.look(state, world)
    if regular and not state.in_a_row:
        state.sound = [*state.sound[-1:], state.step]
    losses_WP = world.gather(state.losses_P)
    if world.leads:
        checkpoints.write(state.step, state.tensors(losses_WP), state.notes(), keep=state.sound)


def _resume(state: TrainingState, checkpoints: Checkpoints, world: World) -> None:
    """Takes up the newest intact checkpoint, where there is one."""
    newest = checkpoints.newest() if world.leads else None
    step = world.first(newest or 0)
    if step:
        state.restore(*checkpoints.read(step), rank=world.rank)
    if world.leads:
        checkpoints.preempted.unlink(missing_ok=True)
        if checkpoints.diverged.exists():
            emit("diverged_before", step=step, record=str(checkpoints.diverged))
        if step:
            emit("resumed", step=step)
