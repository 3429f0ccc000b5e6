"""The curve of a training: a row each ``validate_every`` steps, what the rows say of how it goes, and the file of them.

Shapes: P phases.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from remint.distributed.world import World
from remint.runtime.events import emit
from remint.training.guard import Guard
from remint.training.state import Ending, Row, TrainingState
from remint.training.validation import Score


def end_interval(
    state: TrainingState, world: World, score: Score | None, guard: Guard | None, *, steps: int, patience: int
) -> str | None:
    """Adds a row to the curve, and says whether training is over: ``state.ending``. Every rank calls it.

    Returns what is wrong where the averaged model's score is not finite; nothing is added then.
    """
    row = losses(state, world)
    if score is not None:
        row["validation"] = score(state.average.model)
        if not math.isfinite(row["validation"]):
            return f"the validation score is {row['validation']}"
    if guard is not None and guard.due(state.step):
        row |= guard.look(state.average.model)
    state.add_row(row)
    state.ending = ending(state, guard, steps=steps, patience=patience)
    if world.leads:
        emit("metrics", **row)
        if state.ending and state.ending.collapsed and state.served_row:
            emit("collapsed", step=state.step, served=state.served_row["step"], message=state.ending.reason)
    return None


def ending(state: TrainingState, guard: Guard | None, *, steps: int, patience: int) -> Ending | None:
    """Whether the rows so far say that training is over, and why."""
    if guard is not None and (how := guard.collapsed(state.rows)):
        return Ending("collapsed", f"{how}, at step {state.step}; take another seed or, of a GAN, raise model.penalty")
    if state.step == steps:
        return Ending("finished")
    if patience > 0 and state.waited >= patience:
        return Ending("patience", f"no better score in {patience} rows of the curve")
    return None


def losses(state: TrainingState, world: World) -> Row:
    """Step, each phase's mean loss over the steps that were taken since the last row, and the phases' own numbers.

    All over the global batch. What is not there, or is not finite, is left out. ``skipped``: steps so far that were
    left out, where there are any.
    """
    look(state, world)
    row: Row = {"step": state.step}
    if state.taken:
        means = (world.gather(state.losses_P).mean(0) / state.taken).tolist()
        row |= {f"{phase.name}_loss": mean for phase, mean in zip(state.phases, means, strict=True)}
    row |= {name: value for name, value in state.curves.items() if math.isfinite(value)}
    return row | ({"skipped": state.skipped} if state.skipped else {})


def look(state: TrainingState, world: World) -> None:
    """Notes the phases' own numbers, a mean over the ranks. A number that some step did not give stays as it was."""
    seen = {name: value for phase in state.phases for name, value in phase.curves().items()}
    values = world.gather(torch.tensor(list(seen.values()), dtype=torch.float64)).mean(0).tolist()
    state.curves |= dict(zip(seen, values, strict=True))


def write(rows: Sequence[Row], path: Path) -> None:
    """One line a row; a column that only some rows have is empty in the others."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if "validation" in columns:  # last, whatever a phase reports beside it
        columns.append(columns.pop(columns.index("validation")))
    with path.open("w", newline="") as stream:
        writer: Any = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
