"""Training state: everything that a step changes, and nothing else. A checkpoint stores it.

The order of the examples and all noise are functions of the step; learning rates are functions of the step and of
``rollbacks``. So they are not stored. Best score, patience and the collapse guard's verdict are computed from the rows of
the curve, so they cannot disagree with it.

Shapes: P phases, W ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from remint.distributed.world import World
from remint.models.contract import Model, Phase
from remint.records import Ended
from remint.settings.recipe import TrainingSettings
from remint.training.adamw import AdamW
from remint.training.ema import AveragedModel

JSON_FIELDS = (
    "step",
    "steps_in_interval",
    "skipped",
    "consecutive_skips",
    "nonfinite_steps",
    "rollback_steps",
    "rollbacks",
    "rows",
    "curves",
    "compiled",
)

CRITIC = "critic/"  # begins the names of the critic's tensors in ``best``: no module has a name with a slash

Row = dict[str, float]  # one line of the curve: step, the phases' losses and curves, validation, coverage and reached


class Ending(NamedTuple):
    """Reason for the end of a training."""

    ended: Ended
    reason: str = ""  # one sentence; "": all steps are done

    @property
    def collapsed(self) -> bool:
        return self.ended == "collapsed"


@dataclass
class TrainingState:
    """A training between two steps. Parameters and buffers are the whole state of a model and its phases."""

    model: Model
    phases: Sequence[Phase]
    optimizers: Sequence[AdamW]  # one per phase
    average: AveragedModel
    losses_P: Tensor  # float64: this rank's losses, summed over ``steps_in_interval``
    step: int = 0  # steps done, skipped ones included
    steps_in_interval: int = 0  # steps since the last row of the curve, skipped ones excluded
    skipped: int = 0  # skipped steps since the start ...
    consecutive_skips: int = 0  # ... and since the last step that was not skipped
    nonfinite_steps: list[dict[str, Any]] = field(default_factory=list)  # the last of them (divergence.describe_nonfinite)
    rollback_steps: list[int] = field(default_factory=list)  # steps of the last two checkpoints that a rollback may use
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # start, target and reason of each rollback
    rows: list[Row] = field(default_factory=list)
    curves: Row = field(default_factory=dict)  # last values of the phases' own metrics
    best: dict[str, Tensor] = field(default_factory=dict)  # _kept_tensors() at best_row, if there is one
    machines: list[dict[str, Any]] = field(default_factory=list)  # fingerprints of all its machines, the current one last
    compiled: bool | None = None  # whether the phases are compiled; None: not yet decided
    ending: Ending | None = None  # None: the training is not over

    @property
    def best_row(self) -> Row | None:
        """First row with the lowest score; without scores the last row with the greatest coverage; None if there is none."""
        if self.scored:
            return min((row for row in self.rows if "validation" in row), key=lambda row: row["validation"])
        return max((row for row in reversed(self.rows) if "coverage" in row), key=lambda row: row["coverage"], default=None)

    @property
    def served_row(self) -> Row | None:
        """Row whose averaged weights are served; None: the weights of the last step.

        Coverage is too coarse to select weights. So a model without a score is served as of the last step, unless it has
        collapsed.
        """
        return self.best_row if self.scored or (self.ending and self.ending.collapsed) else None

    @property
    def scored(self) -> bool:
        return any("validation" in row for row in self.rows)

    @property
    def scores_since_best(self) -> int:
        best = self.best_row if self.scored else None
        return sum(row["step"] > best["step"] for row in self.rows) if best else 0

    def count_step(self, losses_P: Tensor) -> None:
        """Count a step that was not skipped."""
        self.losses_P += losses_P
        self.steps_in_interval += 1
        self.consecutive_skips = 0

    def add_row(self, row: Row) -> None:
        """End an interval of the curve: store its row, and the averaged weights if they are the best so far."""
        self.rows.append(row)
        self.losses_P.zero_()
        self.steps_in_interval = 0
        if self.best_row is row:
            self.best = {name: tensor.clone() for name, tensor in self._kept_tensors()}

    def served(self) -> Model:
        """Return the averaged model with the weights of ``served_row``, or unchanged if that is None."""
        with torch.no_grad():
            for name, tensor in _tensors_of(self.average.model) if self.served_row else ():
                tensor.copy_(self.best[name])
        return self.average.model

    @property
    def critic(self) -> nn.Module | None:
        """The critic of the phases; None if they train none."""
        return next((critic for critic in (phase.trained_critic() for phase in self.phases) if critic is not None), None)

    def served_critic(self) -> dict[str, Tensor]:
        """Return the state of the critic at the step of ``served``, by name; nothing if there is no critic."""
        kept = {**dict(self._critic_tensors()), **(self.best if self.served_row else {})}
        return {name.removeprefix(CRITIC): tensor for name, tensor in kept.items() if name.startswith(CRITIC)}

    def tensors(self, losses_WP: Tensor) -> dict[str, Tensor]:
        """Return every tensor by name, copied to the CPU. ``losses_WP``: every rank's ``losses_P``."""
        named = {
            "losses": losses_WP,
            **dict(self._live_tensors()),
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
        }
        for index, optimizer in enumerate(self.optimizers):
            named |= {f"optimizer.{index}.{name}": tensor for name, tensor in optimizer.tensors.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def notes(self) -> dict[str, Any]:
        """Return the rest of the state in JSON types. JSON keeps a float to the bit."""
        return {name: copy.copy(getattr(self, name)) for name in (*JSON_FIELDS, "machines")}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], world: World, settings: TrainingSettings) -> None:
        """Restore the state of ``tensors`` and ``notes``, which a world of any size may have written."""
        with torch.no_grad():
            self.losses_P.copy_(world.own(tensors["losses"], settings.batch_size))
            for name, tensor in self._live_tensors():
                tensor.copy_(tensors[name])
        self.best = {name: tensors[f"best.{name}"].to(t.device) for name, t in self._kept_tensors() if f"best.{name}" in tensors}
        for index, optimizer in enumerate(self.optimizers):
            for name, tensor in optimizer.tensors.items():
                tensor.copy_(tensors[f"optimizer.{index}.{name}"])
        for phase in self.phases:
            phase.metrics.clear()  # of a later step; ``curves`` has those of this one
        for name in JSON_FIELDS:
            setattr(self, name, copy.copy(notes[name]))
        self.machines = [machine for machine in notes["machines"] if machine not in self.machines] + self.machines

    def _kept_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Yield what is kept of the best row: the averaged weights, and the critic of the same step."""
        yield from _tensors_of(self.average.model)
        yield from self._critic_tensors()

    def _critic_tensors(self) -> Iterable[tuple[str, Tensor]]:
        if self.critic is not None:
            yield from ((f"{CRITIC}{name}", tensor) for name, tensor in self.critic.state_dict().items())

    def _live_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Yield parameters and buffers of model, average and phases. A shared tensor is yielded once."""
        parts: dict[str, nn.Module] = {"model": self.model, "average": self.average.model}
        parts |= {f"phase.{index}": phase for index, phase in enumerate(self.phases)}
        seen: set[int] = set()
        for prefix, part in parts.items():
            for name, tensor in _tensors_of(part):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{name}", tensor


def _tensors_of(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
