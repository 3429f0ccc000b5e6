"""Training curve: one row per ``validate_every`` steps, the end of the training decided from the rows, and curve.csv.

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
from remint.settings.recipe import TrainingSettings
from remint.training.guard import Guard
from remint.training.state import Ending, Row, TrainingState
from remint.training.validation import Score


def end_interval(
    state: TrainingState, world: World, score: Score | None, guard: Guard | None, settings: TrainingSettings
) -> str | None:
    """Add a row to the curve, and set ``state.ending`` if the training is over. Every rank calls it.

    Returns a description if the averaged model's score is not finite, and adds no row then; else returns None.
    """
    row = interval_row(state, settings, world)
    if score is not None:
        row["validation"] = score(state.average.model)
        if not math.isfinite(row["validation"]):
            return f"the validation score is {row['validation']}"
    if guard is not None and guard.due(state.step):
        row |= guard.measure(state.average.model)
    state.add_row(row)
    state.ending = ending(state, guard, settings)
    if world.leads:
        emit("metrics", **row)
        if state.ending and state.ending.collapsed and state.served_row:
            emit("collapsed", step=state.step, served=state.served_row["step"], message=state.ending.reason)
    return None


def ending(state: TrainingState, guard: Guard | None, settings: TrainingSettings) -> Ending | None:
    """Return the reason to end the training after the rows so far; None: continue."""
    if guard is not None and (how := guard.collapsed(state.rows)):
        return Ending("collapsed", f"{how}, at step {state.step}; use another seed or, for a GAN, raise model.penalty")
    if state.step == settings.steps:
        return Ending("finished")
    if 0 < settings.patience <= state.scores_since_best:
        return Ending("patience", f"no better score in {settings.patience} rows of the curve")
    return None


def interval_row(state: TrainingState, settings: TrainingSettings, world: World) -> Row:
    """Return the row of the steps since the last one: step, each phase's mean loss, and the phases' own metrics.

    The values cover the global batch, without skipped steps. A number that is absent or not finite is left out. ``skipped``:
    number of skipped steps since the start, if there are any.
    """
    update_phase_metrics(state, settings, world)
    row: Row = {"step": state.step}
    if state.steps_in_interval:
        means = (world.mean(state.losses_P, settings.batch_size) / state.steps_in_interval).tolist()
        row |= {f"{phase.name}_loss": mean for phase, mean in zip(state.phases, means, strict=True)}
    row |= {name: value for name, value in state.curves.items() if math.isfinite(value)}
    return row | ({"skipped": state.skipped} if state.skipped else {})


def update_phase_metrics(state: TrainingState, settings: TrainingSettings, world: World) -> None:
    """Update ``state.curves`` with the phases' own metrics, averaged over the global batch. One not given keeps its value."""
    seen = {name: value for phase in state.phases for name, value in phase.curves().items()}
    values = world.mean(torch.tensor(list(seen.values()), dtype=torch.float64), settings.batch_size).tolist()
    state.curves |= dict(zip(seen, values, strict=True))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV. A column that a row lacks is an empty field."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if "validation" in columns:  # always the last column
        columns.append(columns.pop(columns.index("validation")))
    with path.open("w", newline="") as stream:
        writer: Any = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
