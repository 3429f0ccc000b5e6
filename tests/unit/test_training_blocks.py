"""Blocks of steps: a step that breaks within a block leaves no trace, however a phase is written. Exact, on two weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from remint.distributed.machine import deterministic
from remint.errors import StepError
from remint.models.contract import Batch
from tests.support.loop_cases import Fit, Line, train_line


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with deterministic(threads=1):
        yield


class Summing(Fit):
    """Phase with a buffer, the sum of its steps. Its loss is NaN in step 6, the second of its block."""

    name: ClassVar[str] = "summing"
    total: Tensor

    def __init__(self, model: Line, add: Callable[[Summing, int], None]) -> None:
        super().__init__(model)
        self.add = add
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("constant", torch.ones(1).expand(3))  # cannot be written to

    def forward(self, batch: Batch) -> Tensor:
        self.add(self, batch.step)
        return super().forward(batch) + (math.nan if batch.step == 6 else 0.0)


def in_place(phase: Summing, step: int) -> None:
    phase.total += step


def replaced(phase: Summing, step: int) -> None:
    phase.total = phase.total + step


def through_data(phase: Summing, step: int) -> None:
    phase.total.data += step  # as codebooks are often written; autograd sees no write


@pytest.mark.parametrize("add", [in_place, replaced, through_data])
def test_a_buffer_is_undone_however_a_phase_writes_to_it(add: Callable[[Summing, int], None], tmp_path: Path) -> None:
    model = Line()
    phase = Summing(model, add)
    assert train_line(tmp_path, model, [phase], steps=10).skipped == 1
    assert float(phase.total) == sum(range(10)) - 6


class Lazy(Fit):
    """Phase that measures itself on each third step. Its loss is NaN in ``broken`` steps, each in its first run."""

    name: ClassVar[str] = "lazy"

    def __init__(self, model: Line, broken: set[int]) -> None:
        super().__init__(model)
        self.broken = broken

    def forward(self, batch: Batch) -> Tensor:
        if batch.step % 3 == 0:
            self.metrics["measured"] = torch.tensor(float(batch.step))
        return super().forward(batch) + (math.nan if batch.step in self.broken else 0.0)


def test_the_metrics_of_a_step_that_is_undone_are_undone(tmp_path: Path) -> None:
    model = Line()
    state = train_line(tmp_path, model, [Lazy(model, {6})], steps=8, validate_every=8)
    assert (state.skipped, state.rows[-1]["measured"]) == (1, 3.0)


def test_the_metrics_after_a_rollback_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    """It is from step 8 to step 4, and step 6, which measures, comes after the next row."""
    model = Line()
    phase = Lazy(model, {7})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remint.training.divergence.emit", lambda *_, **__: phase.broken.clear())
        state = train_line(tmp_path, model, [phase], skip_limit=0, checkpoint_every=4)
    assert [(entry["step"], entry["to"]) for entry in state.rollbacks] == [(8, 4)]
    assert [(row["step"], row["measured"]) for row in state.rows] == [(2, 0.0), (4, 3.0), (6, 3.0), (8, 6.0)]


def test_a_buffer_that_a_step_registers_is_one_line(tmp_path: Path) -> None:
    class Late(Fit):
        def forward(self, batch: Batch) -> Tensor:
            if batch.step == 1:
                self.register_buffer("late", torch.zeros(()))
            return super().forward(batch)

    model = Line()
    with pytest.raises(StepError, match=r"^buffer late was registered by the forward of a phase: register it in __init__$"):
        train_line(tmp_path, model, [Late(model)], steps=2)


class Masked(Fit):
    """Phase that has nothing to fit in step 6: its loss is 0 / 0, and its gradient 0."""

    name: ClassVar[str] = "masked"

    def forward(self, batch: Batch) -> Tensor:
        kept_2 = torch.full((2,), batch.step != 6)
        return torch.where(kept_2, self.model.weight.square(), 0.0).sum() / kept_2.sum()


def test_a_loss_that_is_not_finite_breaks_a_step_also_if_its_gradient_is_zero(tmp_path: Path) -> None:
    model = Line()
    state = train_line(tmp_path, model, [Masked(model)], steps=10)
    assert (state.skipped, state.nonfinite_steps[0]["step"]) == (1, 6)
    assert all(math.isfinite(row["masked_loss"]) for row in state.rows)


def test_each_rollback_to_the_start_is_to_the_same_start(tmp_path: Path) -> None:
    """After two of them the training is that with a quarter of the learning rate, also in its moments."""
    model, broken = Line(), [True]
    phase = Fit(model)
    phase.watch = lambda batch: batch.x_BX.fill_(math.nan) if broken[0] and batch.step == 4 else None

    def emitted(event: str, **fields: Any) -> None:
        broken[0] = broken[0] and not (event == "rolled_back" and fields["time"] == 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remint.training.divergence.emit", emitted)
        state = train_line(tmp_path / "back", model, [phase], steps=6, skip_limit=0, skip_share=1.0)
    assert [entry["to"] for entry in state.rollbacks] == [0, 0]
    slow = Line()
    train_line(tmp_path / "slow", slow, [Fit(slow)], steps=6, learning_rate=0.0125)
    assert torch.equal(model.weight, slow.weight)


@pytest.mark.parametrize("shape", [(1,), (4,)])
def test_a_loss_that_is_no_scalar_is_one_line(shape: tuple[int, ...], tmp_path: Path) -> None:
    class Unreduced(Fit):
        def forward(self, batch: Batch) -> Tensor:
            return super().forward(batch).expand(shape)

    model = Line()
    with pytest.raises(
        StepError, match=rf"^the loss of a phase has shape \({shape[0]},\), not \(\): its forward must return a mean"
    ):
        train_line(tmp_path, model, [Unreduced(model)])


def test_no_later_step_of_a_broken_block_sees_weights_that_are_not_finite(tmp_path: Path) -> None:
    """Its phases might raise an error on them."""

    class Strict(Summing):
        def forward(self, batch: Batch) -> Tensor:
            assert self.model.weight.isfinite().all(), f"step {batch.step}"
            return super().forward(batch)

    model = Line()
    assert train_line(tmp_path, model, [Strict(model, in_place)], validate_every=100).skipped == 1
