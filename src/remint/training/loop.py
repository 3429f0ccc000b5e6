"""The training loop: phases in turn, an averaged model beside them, checkpoints from which it goes on to the bit.

The loop never asks which family it trains. What is random is a function of (seed, step, place in the global
batch), so one process and N see the same numbers, and a resumed training those of one that never stopped.

Shapes: N examples, B this process's part of the batch, C channels, H height, W width, P phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.errors import Interrupted, StepError
from remint.models.contract import Batch, Model, Phase
from remint.step import emit
from remint.training.checkpoint import Checkpoints
from remint.training.ema import AveragedModel
from remint.training.guard import Guard
from remint.training.randomness import LAYERS, batch_noise, seed_layers
from remint.training.state import Ending, Row, TrainingState
from remint.training.validation import Score


def train(
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
    world: World,  # this process among the others
    machine: dict[str, Any],  # its fingerprint
    checkpoints: Checkpoints,  # where to go on from; held by rank 0
    stop: Callable[[], bool],  # whether somebody asked this process to stop
) -> TrainingState:
    """Trains, from the newest intact checkpoint on, and returns the state after the last step.

    ``state.served()`` of the result has the averaged weights of the best score, and ``state.ending`` says why it is
    over: a model that has collapsed, or a loss or score that is not finite, ends it at the best row so far. Every
    process of ``world`` calls it with the same arguments. Emits progress about once a second and metrics with each row.

    Raises Interrupted, with a checkpoint of the step just finished, where any process is asked to stop;
    StepError where a loss or score is not finite before there is a row to go back to; StorageError where a checkpoint
    cannot be written.
    """
    model.requires_grad_(False)
    for phase in phases:
        phase.train().requires_grad_(False)
    runners = [world.shared(phase) for phase in phases]
    optimizers = [AdamW(phase.parameters(), betas=phase.betas, weight_decay=weight_decay, fused=True) for phase in phases]
    decay = ema if ema_images is None else 0.5 ** (batch_size / ema_images)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    losses_P = torch.zeros(len(phases), dtype=torch.float64, device=world.device)
    state = TrainingState(model, phases, optimizers, AveragedModel(model), losses_P, machines=[machine])
    _resume(state, checkpoints, world)
    state.ending = _ending(state, guard, steps=steps, patience=patience)
    rows, began, told = world.rows(batch_size), time.monotonic(), 0.0

    while state.ending is None:
        step = state.step
        seed_layers(seed, LAYERS, step, world.rank)
        places = torch.tensor(batch_indices(len(x_NX), batch_size, seed, step)[rows], device=world.device)
        x_BX = x_NX.index_select(0, places).to(dtype)
        y_B = None if y_N is None else y_N.index_select(0, places)
        factor = learning_rate_factor(step, steps, warmup, final_learning_rate)
        for index, phase in enumerate(phases):
            noise_BN = batch_noise(rows, batch_size, phase.noise_size, seed=seed, step=step, phase=index, device=world.device)
            batch = Batch(x_BX, noise_BN.to(dtype), step / steps, step, y_B)
            phase.schedule(batch.progress)
            optimizers[index].param_groups[0].update(lr=factor * learning_rate * phase.learning_rate, betas=phase.betas)
            losses_P[index] += _descend(runners[index], optimizers[index], batch, clip=gradient_clip, precision=precision)
        state.average.update(decay, step)
        state.step += 1

        if state.step == steps or state.step % validate_every == 0:
            _end_interval(state, world, score, guard, steps=steps, patience=patience)
        if world.leads and (state.ending or time.monotonic() - told > 1.0):
            told = time.monotonic()
            emit(
                "progress",
                **(state.rows[-1] if state.rows else {}) | {"step": state.step, "steps": steps, "seconds": told - began},
            )
        stopped = world.any(stop())
        if state.ending or stopped or state.step % checkpoint_every == 0:
            _keep(state, checkpoints, world)
        if stopped and not state.ending:
            if world.leads:
                emit("interrupted", step=state.step)
            raise Interrupted(f"interrupted after step {state.step} of {steps}: a checkpoint is kept; run again to go on from it")
    return state


def _descend(runner: nn.Module, optimizer: Optimizer, batch: Batch, *, clip: float, precision: str) -> Tensor:
    """One optimizer step of one phase; its loss, shape (), without gradients."""
    (group,) = optimizer.param_groups
    for parameter in group["params"]:
        parameter.requires_grad_(True)
    with torch.autocast(batch.x_BX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss: Tensor = runner(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_(group["params"], clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter in group["params"]:
        parameter.requires_grad_(False)
    return loss.detach()


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


def _end_interval(
    state: TrainingState, world: World, score: Score | None, guard: Guard | None, *, steps: int, patience: int
) -> None:
    """Adds a row to the curve and says whether training is over. Raises StepError where it diverged and has no best row."""
    row = _losses(state, world)
    if _not_finite(row) is None:  # else there is no saying what a score would do
        if score is not None:
            row["validation"] = score(state.average.model)
        if guard is not None and guard.due(state.step):
            row |= guard.look(state.average.model)
    if wrong := _not_finite(row):
        advice = "lower training.learning_rate or set training.gradient_clip"
        if state.best_row is None:
            raise StepError(f"{wrong} at step {state.step}: training diverged; {advice}")
        state.ending = Ending("diverged", f"{wrong} at step {state.step}; {advice}")
    else:
        state.add_row(row)
        state.ending = _ending(state, guard, steps=steps, patience=patience)
        if world.leads:
            emit("metrics", **row)
    if world.leads and state.ending and state.served_row and state.ending.failed:
        emit(state.ending.ended, step=state.step, served=state.served_row["step"], message=state.ending.reason)


def _ending(state: TrainingState, guard: Guard | None, *, steps: int, patience: int) -> Ending | None:
    """Whether the rows so far say that training is over, and why."""
    if guard is not None and (how := guard.collapsed(state.rows)):
        return Ending("collapsed", f"{how}, at step {state.step}; take another seed or, of a GAN, raise model.penalty")
    if state.step == steps:
        return Ending("finished")
    if patience > 0 and state.waited >= patience:
        return Ending("patience", f"no better score in {patience} rows of the curve")
    return None


def _losses(state: TrainingState, world: World) -> Row:
    """Step, each phase's mean loss since the last row, and the phases' own numbers, all over the global batch."""
    _look(state, world)
    since = state.step - int(state.rows[-1]["step"] if state.rows else 0)
    losses = (world.gather(state.losses_P).mean(0) / since).tolist()
    means = {f"{phase.name}_loss": loss for phase, loss in zip(state.phases, losses, strict=True)}
    return {"step": state.step, **means, **state.curves}


def _not_finite(row: Row) -> str | None:
    """The first number of a row that is not finite, and what it is."""
    return next((f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)), None)


def _look(state: TrainingState, world: World) -> None:
    """Notes the phases' own numbers, a mean over the ranks. A number that some step did not give stays as it was."""
    seen = {name: value for phase in state.phases for name, value in phase.curves().items()}
    values = world.gather(torch.tensor(list(seen.values()), dtype=torch.float64)).mean(0).tolist()
    state.curves |= dict(zip(seen, values, strict=True))


def _keep(state: TrainingState, checkpoints: Checkpoints, world: World) -> None:
    """Writes a checkpoint of the step just finished, unless it diverged: from the one before, it will again."""
    if state.ending and state.ending.ended == "diverged":
        return
    _look(state, world)
    losses_WP = world.gather(state.losses_P)
    if world.leads:
        checkpoints.write(state.step, state.tensors(losses_WP), state.notes())


def _resume(state: TrainingState, checkpoints: Checkpoints, world: World) -> None:
    """Takes up the newest intact checkpoint, where there is one."""
    newest = checkpoints.newest() if world.leads else None
    step = world.first(newest or 0)
    if step:
        state.restore(*checkpoints.read(step), rank=world.rank)
        if world.leads:
            emit("resumed", step=step)
