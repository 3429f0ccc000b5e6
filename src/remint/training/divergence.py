"""Response to a loss or gradient that is not finite.

    one such step          skip it: model, average and optimizers do not change, in whatever phase it happens
    too many skips         roll back to the last good checkpoint and lower the learning rate
    too many rollbacks     fail, with a record of the curve, the batches and the parameters

Mixed precision training skips steps in the same way (Micikevicius et al., Mixed precision training, 2018). OPT-175B was
trained with restarts from an earlier checkpoint at a lower learning rate (Zhang et al., OPT, 2022).

All ranks reach the same verdict: a step that breaks on one of them breaks on all. The response is a function of the state: a
training that was killed between two steps rolls back or fails at the same step as without a kill.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from torch import Tensor

from remint.distributed.world import World
from remint.errors import StepError
from remint.runtime.events import emit
from remint.runtime.manifest import whole_folder
from remint.settings.recipe import TrainingSettings
from remint.training import curve
from remint.training.checkpoint import Checkpoints
from remint.training.state import TrainingState
from remint.training.step import MAX_NAMED, rollback_factor

RECORD, CURVE = "diverged.json", "curve.csv"  # in Checkpoints.diverged
Saved = tuple[dict[str, Tensor], dict[str, Any]]  # TrainingState.tensors and notes


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
    state.restore(*(world.share(lambda: checkpoints.read(target)) if target else initial), world, settings)
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
    rows = [*state.rows, curve.interval_row(state, settings, world)] if state.steps_in_interval else state.rows
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
