"""Response to a loss or gradient that is not finite.

    one such step          skip it: model, average and optimizers do not change, in whatever phase it happens
    too many skips         roll back to the last good checkpoint and lower the learning rate
    too many rollbacks     fail, with a record of the curve, the batches and the parameters

Mixed precision training skips steps in the same way (Micikevicius et al., Mixed precision training, 2018). OPT-175B was
trained with restarts from an earlier checkpoint at a lower learning rate (Zhang et al., OPT, 2022).

All ranks reach the same verdict without communication, because it depends on the norm of the gradient, which they share. A
loss that is not finite on one rank makes the gradient not finite on all (``step._compute_gradient``). The response is a
function of the state: a training that was killed between two steps rolls back or fails at the same step as without a kill.

The host reads what happened every few steps, at most ``skip_limit`` of them (step.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.errors import StepError
from remint.models.contract import Phase
from remint.runtime.events import emit
from remint.runtime.manifest import whole_folder
from remint.settings.recipe import TrainingSettings
from remint.training import curve
from remint.training.checkpoint import Checkpoints
from remint.training.state import TrainingState
from remint.training.step import StepLog, rollback_factor

RECORD, CURVE = "diverged.json", "curve.csv"  # in Checkpoints.diverged
MAX_NAMED = 10  # maximum number of nonfinite parameters per step, and of such steps, in the record

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # TrainingState.tensors and notes


def _describe(phase: Phase, losses_W: list[float], norms: list[float], step: int, examples: Iterable[int]) -> dict[str, Any]:
    """Describe a phase whose loss or gradient is not finite, in JSON types.

    ``norms``: of the whole gradient, then of each parameter's. ``examples``: the global batch, as places in the training split.
    """
    finite = all(map(math.isfinite, losses_W))
    weights = {name: parameter.detach() for name, parameter in phase.named_parameters()}
    gradients = dict(zip(weights, norms[1:], strict=True))
    names = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if finite:  # else the nonfinite loss has made all gradients nonfinite
        names += [name for name, norm in gradients.items() if name not in names and not math.isfinite(norm)]
    # All parts may be finite while the norm or the loss overflows: then name the part that is the greatest.
    sizes = gradients if finite else {name: float(weight.abs().max()) for name, weight in weights.items()}
    names = names or [max(sizes, key=lambda name: sizes[name])]
    if finite:
        why = f"the gradient of {names[0]} in phase {phase.name} is not finite"
    else:
        why = f"the loss of phase {phase.name} is {next(value for value in losses_W if not math.isfinite(value))}"
    return {
        "step": step,
        "phase": phase.name,
        "why": why,
        "losses": [str(value) for value in losses_W],  # of each rank; JSON has no NaN
        "gradient_norm": str(norms[0]),
        "parameters": names[:MAX_NAMED],  # not finite, else the greatest one
        "examples": [int(index) for index in examples],
    }


def count_steps(state: TrainingState, log: StepLog, settings: TrainingSettings, examples: int, world: World) -> None:
    """Count the steps in ``log``, and set ``state.excess`` where too many of them were skipped. All ranks must call it.

    Skipped steps after that are not counted: the rollback undoes them. ``examples``: size of the training split. An event is
    emitted for the first, the second, the fourth skipped step and so on.
    """
    for step, broken, losses_W, norms in log.read(world):
        if broken is None:
            state.steps_in_interval += 1
            state.consecutive_skips = state.consecutive_skips if state.excess else 0
        elif state.excess is None:
            indices = batch_indices(examples, settings.batch_size, settings.seed, step)
            found = _describe(state.phases[broken], losses_W, norms, step, indices)
            state.skipped += 1
            state.consecutive_skips += 1
            state.nonfinite_steps = [*state.nonfinite_steps[1 - MAX_NAMED :], found]
            if world.leads and state.skipped & (state.skipped - 1) == 0:
                emit("skipped", step=step + 1, skipped=state.skipped, message=found["why"])
            if why := _too_many_skips(state, settings, step + 1):
                state.excess = {"step": step + 1, "why": why}


def _too_many_skips(state: TrainingState, settings: TrainingSettings, step: int) -> str | None:
    """Describe the excess of skipped steps after ``step`` steps; None: they are tolerated."""
    last = f"the last because {state.nonfinite_steps[-1]['why']}"
    if state.consecutive_skips > settings.skip_limit:
        return f"{state.consecutive_skips} steps in a row were skipped, {last}"
    if state.skipped > max(settings.skip_limit, settings.skip_share * settings.steps):
        return f"{state.skipped} of {step} steps were skipped, {last}"
    return None


def due_rollback(state: TrainingState) -> str | None:
    """Return the reason for a rollback, and set the state's step to that of the last skip; None: none is due."""
    if state.excess is None:
        return None
    state.step = state.excess["step"]  # the steps since then do not count
    return str(state.excess["why"])


def roll_back(
    state: TrainingState, why: str, initial: Saved, settings: TrainingSettings, checkpoints: Checkpoints, world: World
) -> None:
    """Restore the last good checkpoint, or else the initial state, and lower the learning rate from there on.

    A good checkpoint was written before the run of skipped steps: no step was possible from the state in which they
    began. Raises StepError, with a record on disk, when no rollback is left.
    """
    if len(state.rollbacks) == settings.rollbacks:
        _fail(state, why, settings, checkpoints, world)
    good = [step for step in state.rollback_steps if step < state.step - state.consecutive_skips]
    target = world.broadcast((checkpoints.newest(good) or 0) if world.leads else 0)
    rollbacks = [*state.rollbacks, {"step": state.step, "to": target, "why": why, "breaks": state.nonfinite_steps}]
    state.restore(*(checkpoints.read(target) if target else initial), rank=world.rank)
    state.rollbacks = rollbacks
    if world.leads:
        checkpoints.delete_after(target)  # they lead to the failure
        emit(
            "rolled_back",
            step=rollbacks[-1]["step"],
            to=target,
            message=why,
            learning_rate=rollback_factor(state, settings),
            time=len(rollbacks),
            times=settings.rollbacks,
        )


def _fail(state: TrainingState, why: str, settings: TrainingSettings, checkpoints: Checkpoints, world: World) -> NoReturn:
    """Write the record of a diverged training and raise StepError, which names its folder."""
    rows = [*state.rows, curve.interval_row(state, world)] if state.steps_in_interval else state.rows
    if world.leads:
        record = {
            "step": state.step,
            "why": why,
            "learning_rate_factor": rollback_factor(state, settings),
            "skipped": state.skipped,
            "breaks": state.nonfinite_steps,
            "rollbacks": state.rollbacks,
        }
        with whole_folder(checkpoints.diverged) as folder:
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
            curve.write(rows or [{"step": state.step}], folder / CURVE)
        if state.steps_in_interval:
            emit("metrics", **rows[-1])
    world.broadcast(0)  # every rank waits until rank 0 has written
    back = f", after {len(state.rollbacks)} rollbacks" if state.rollbacks else ""
    raise StepError(
        f"training diverged at step {state.step}{back}: {why}; lower training.learning_rate or set training.gradient_clip "
        f"(curve, batches and parameters: {checkpoints.diverged})"
    )
