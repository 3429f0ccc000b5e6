"""Response to a loss or gradient that is not finite.

    one such step          skip it: model, average and optimizers do not change, in whatever phase it happens
    too many skips         roll back to the last good checkpoint and lower the learning rate
    too many rollbacks     fail, with a record of the curve, the batches and the parameters

Mixed precision training skips steps in the same way (Micikevicius et al., Mixed precision training, 2018). OPT-175B was
trained with restarts from an earlier checkpoint at a lower learning rate (Zhang et al., OPT, 2022).

All ranks reach the same verdict without communication, because it depends on the norm of the gradient, which they share. A
loss that is not finite on one rank makes the gradient not finite on all (``loop._compute_gradient``). The response is a
function of the state: a training that was killed between two steps rolls back or fails at the same step as without a kill.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from remint.distributed.world import World
from remint.errors import StepError
from remint.models.contract import Phase
from remint.runtime.events import emit
from remint.runtime.manifest import whole_folder
from remint.settings.recipe import TrainingSettings
from remint.training import curve
from remint.training.checkpoint import Checkpoints
from remint.training.state import TrainingState

RECORD, CURVE = "diverged.json", "curve.csv"  # in Checkpoints.diverged
MAX_NAMED = 10  # maximum number of nonfinite parameters per step, and of such steps, in the record

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # TrainingState.tensors and notes


class StepSnapshot:
    """Copy of everything that a step may change before a phase turns out nonfinite: buffers, and the weights of earlier phases.

    The last phase's parameters and moments are not in it: they change only after its gradient was found finite.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        every = {id(part): part for module in modules for part in module.modules()}
        self._buffers = [(part._buffers, name) for part in every.values() for name, _ in part.named_buffers(recurse=False)]
        self._seen: list[tuple[Tensor, int, Tensor] | None] = [None] * len(self._buffers)  # tensor, its version, a copy
        self._optimizers = optimizers[:-1]
        self._trained: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in self._optimizers]  # live, copies

    @torch.no_grad()
    def save(self) -> None:
        """Save the current values. A buffer is copied only if it was written to or replaced since the last copy."""
        for index, (buffers, name) in enumerate(self._buffers):
            tensor, seen = buffers[name], self._seen[index]
            assert tensor is not None
            if seen is None or seen[0] is not tensor or seen[1] != tensor._version:
                self._seen[index] = (tensor, tensor._version, tensor.clone())
        for index, optimizer in enumerate(self._optimizers):
            live, (known, copies) = _optimizer_tensors(optimizer), self._trained[index]
            if len(live) != len(known) or any(one is not other for one, other in zip(live, known, strict=True)):
                copies = [torch.empty_like(tensor) for tensor in live]  # the first step and a restore create new moment tensors
                self._trained[index] = (live, copies)
            torch._foreach_copy_(copies, live)

    @torch.no_grad()
    def restore(self) -> None:
        for (buffers, name), seen in zip(self._buffers, self._seen, strict=True):
            assert seen is not None
            tensor, version, copy = seen
            if tensor._version != version:
                tensor.copy_(copy)
            buffers[name] = tensor
        for optimizer, (live, copies) in zip(self._optimizers, self._trained, strict=True):
            if len(_optimizer_tensors(optimizer)) != len(live):
                optimizer.state.clear()
            torch._foreach_copy_(live, copies)
        self._seen = [None] * len(self._seen)


def _optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    (group,) = optimizer.param_groups
    return [*group["params"], *(tensor for entries in optimizer.state.values() for tensor in entries.values())]


def describe_nonfinite(
    phase: Phase, loss: Tensor, norm: Tensor, step: int, indices: Iterable[int], world: World
) -> dict[str, Any]:
    """Describe a phase whose loss or gradient is not finite, in JSON types. Every rank calls it.

    ``indices``: the global batch, as places in the training split.
    """
    every = world.gather(loss).flatten().tolist()
    finite = all(map(math.isfinite, every))
    weights = {name: parameter.detach() for name, parameter in phase.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in phase.named_parameters() if parameter.grad is not None}
    parts = gradients if finite else weights
    names = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if finite:  # else the nonfinite loss has made all gradients nonfinite
        names += [name for name, gradient in gradients.items() if name not in names and not gradient.isfinite().all()]
    # All parts may be finite while the norm or the loss overflows: then name the part with the greatest entry.
    names = names or [max(parts, key=lambda name: float(parts[name].abs().max()))]
    if finite:
        why = f"the gradient of {names[0]} in phase {phase.name} is not finite"
    else:
        why = f"the loss of phase {phase.name} is {next(value for value in every if not math.isfinite(value))}"
    return {
        "step": step,
        "phase": phase.name,
        "why": why,
        "losses": [str(value) for value in every],  # of each rank; JSON has no NaN
        "gradient_norm": str(float(norm)),
        "parameters": names[:MAX_NAMED],  # not finite, else the one with the greatest entry
        "examples": [int(index) for index in indices],
    }


def rollback_factor(state: TrainingState, settings: TrainingSettings) -> float:
    """Return the factor of the learning rate after the rollbacks so far."""
    return settings.rollback_learning_rate ** len(state.rollbacks)


def too_many_skips(state: TrainingState, settings: TrainingSettings) -> str | None:
    """Describe the excess of skipped steps that asks for a rollback; None: the skipped steps are tolerated."""
    if not state.consecutive_skips:
        return None
    last = f"the last because {state.nonfinite_steps[-1]['why']}"
    if state.consecutive_skips > settings.skip_limit:
        return f"{state.consecutive_skips} steps in a row were skipped, {last}"
    if state.skipped > max(settings.skip_limit, settings.skip_share * settings.steps):
        return f"{state.skipped} of {state.step} steps were skipped, {last}"
    return None


def count_skip(state: TrainingState, nonfinite: dict[str, Any], world: World) -> None:
    """Count a skipped step. An event is emitted for the first, the second, the fourth and so on."""
    state.skipped += 1
    state.consecutive_skips += 1
    state.nonfinite_steps = [*state.nonfinite_steps[1 - MAX_NAMED :], nonfinite]
    if world.leads and state.skipped & (state.skipped - 1) == 0:
        emit("skipped", step=state.step + 1, skipped=state.skipped, message=nonfinite["why"])


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
