"""Nonfinite losses and gradients: skipped steps, rollbacks, failure. Exact, on two weights."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remint.data.sampler import batch_indices
from remint.distributed.machine import deterministic
from remint.errors import Interrupted, StepError
from remint.models.contract import Batch, Phase
from remint.runtime.manifest import verify
from remint.training.checkpoint import Checkpoints
from remint.training.state import Ending, TrainingState
from remint.training.step import StepRunner
from tests.support.loop_cases import Cliff, Fit, Line, reference_training, train_line


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with deterministic(threads=1):
        yield


class Other(Fit):
    """Phase that trains a separate model."""

    name = "other"


class Broken(torch.autograd.Function):
    """Identity whose gradient is replaced by a given value."""

    @staticmethod
    def forward(context: Any, x: Tensor, value: float) -> Tensor:
        context.value = value
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradients[0], context.value), None


def nan_batch(phase: Fit, batch: Batch) -> None:
    batch.x_BX[1] = math.nan


def gradient(value: float) -> Callable[[Fit, Batch], None]:
    def breaks(phase: Fit, _: Batch) -> None:
        hook: Any = None

        def once(real: Tensor) -> Tensor:
            hook.remove()
            return torch.tensor([real[0], value])

        hook = phase.model.weight.register_hook(once)

    return breaks


def loss_only(phase: Fit, batch: Batch) -> None:
    """Add inf to the loss; its gradient stays finite."""
    phase.added = math.inf


class Added(Fit):
    added = 0.0

    def forward(self, batch: Batch) -> Tensor:
        loss = super().forward(batch) + self.added
        self.added = 0.0
        return loss


HOW = {"loss": nan_batch, "gradient": gradient(math.inf), "norm": gradient(3e38), "loss alone": loss_only}


def nonfinite_phases(at: set[int], how: str, which: int) -> tuple[Line, list[Phase]]:
    """Make two phases on two models; one of them is nonfinite in some steps."""
    model, other = Line(), Line()
    phases = [Added(model), Other(other)]
    if which == 1:
        phases = [Fit(model), Added(other)]

    def watch(batch: Batch) -> None:
        if batch.step in at:
            HOW[how](phases[which], batch)

    phases[which].watch = watch
    return model, list(phases)


def arrays_after(step: int, folder: Path) -> dict[str, Tensor]:
    tensors, _ = Checkpoints(folder, "d").read(step)
    return {name: tensor for name, tensor in tensors.items() if name != "losses"}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("at", [0, 3])
def test_a_nonfinite_step_changes_nothing(at: int, how: str, which: int, tmp_path: Path) -> None:
    """Weights, moments, average and buffers stay as before the step, also those of phases before the nonfinite one."""
    model, phases = nonfinite_phases({at}, how, which)
    asked = iter([False] * at + [True])
    with pytest.raises(Interrupted, match=f"after step {at + 1}"):
        train_line(tmp_path, model, phases, stop=lambda: next(asked), checkpoint_every=1)
    skipped = arrays_after(at + 1, tmp_path)
    if at:
        before = arrays_after(at, tmp_path)
        assert any(name.startswith("optimizer.") for name in before)
    else:
        before = {name: torch.zeros(tensor.shape) if "optimizer" in name else tensor for name, tensor in skipped.items()}
        for prefix in ("model", "average", "phase.1.model"):
            assert before[f"{prefix}.weight"].tolist() == [2.0, -1.0]
            assert before[f"{prefix}.seen"] == 0
    assert skipped.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, skipped[name]), name


def test_a_skipped_step_is_one_missing_step_of_adamw(tmp_path: Path) -> None:
    """The rest equals a training without that step: same batches, same learning rates, moments without its gradient."""
    model, phases = nonfinite_phases({3, 4}, "gradient", 0)
    state = train_line(tmp_path, model, phases, validate_every=1)
    weight, average, losses = reference_training((0, 1, 2, 5, 6, 7), weight_decay=0.0, clip=None)
    torch.testing.assert_close(model.weight, weight)
    torch.testing.assert_close(state.average.model.state_dict()["weight"], average)
    assert [row["fit_loss"] for row in state.rows if "fit_loss" in row] == pytest.approx(losses, rel=1e-6)
    assert [row.get("skipped") for row in state.rows] == [None, None, None, 1, 2, 2, 2, 2]
    assert ["fit_loss" in row for row in state.rows] == [True] * 3 + [False] * 2 + [True] * 3
    assert (state.ending, state.skipped, state.consecutive_skips, state.rollbacks) == (Ending("finished"), 2, 0, [])


def test_a_row_is_the_mean_over_the_steps_that_were_not_skipped(tmp_path: Path) -> None:
    model, phases = nonfinite_phases({1}, "loss", 0)
    each = train_line(tmp_path / "each", model, phases, validate_every=1).rows
    model, phases = nonfinite_phases({1}, "loss", 0)
    (row, *_) = train_line(tmp_path / "one", model, phases, validate_every=4).rows
    assert row["fit_loss"] == pytest.approx(sum(each[index]["fit_loss"] for index in (0, 2, 3)) / 3)
    assert row["skipped"] == 1


@pytest.mark.parametrize(
    ("at", "limits", "back"),
    [
        ({2, 3, 4}, {"skip_limit": 3}, []),
        ({2, 3, 4}, {"skip_limit": 2}, [5]),
        ({2}, {"skip_limit": 0}, [3]),
        ({1, 3, 5}, {"skip_limit": 2, "skip_share": 0.3}, [6]),  # 3 of 8 is more than 0.3, and 3 is more than 2
        ({1, 3, 5}, {"skip_limit": 2, "skip_share": 0.4}, []),
        ({1, 3, 5}, {"skip_limit": 3, "skip_share": 0.0}, []),  # the share counts only above the limit
    ],
)
def test_training_rolls_back_when_skips_exceed_the_limits(
    at: set[int], limits: dict[str, Any], back: list[int], tmp_path: Path
) -> None:
    """After a rollback the steps are finite again."""
    model, phases = nonfinite_phases(at, "loss", 0)
    state: list[TrainingState] = []

    def emitted(event: str, **fields: Any) -> None:
        if event == "rolled_back":
            at.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remint.training.divergence.emit", emitted)
        state.append(train_line(tmp_path, model, phases, **limits))
    assert [entry["step"] for entry in state[0].rollbacks] == back
    assert state[0].ending == Ending("finished")


CLIFF: dict[str, Any] = {"steps": 24, "warmup": 1.0, "learning_rate": 0.1, "validate_every": 3, "checkpoint_every": 4}
BOUND = 0.04  # bound of a step: the rising learning rate exceeds it, half of it never does


def test_a_rollback_with_half_the_learning_rate_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result equals that of a training stopped at that checkpoint and resumed with half the learning rate."""
    model = Line()
    state = train_line(tmp_path / "cliff", model, [Cliff(model, BOUND)], **CLIFF)
    assert state.ending == Ending("finished")
    (entry,) = state.rollbacks
    broke = entry["step"] - 6  # six consecutive steps were skipped
    assert entry["to"] == 4 * ((broke - 1) // 4) > 0, "the last checkpoint of before the trouble"
    assert "6 steps in a row were skipped, the last because the loss of phase cliff is nan" in entry["why"]
    assert [found["step"] for found in entry["breaks"]] == list(range(broke, broke + 6))

    model, asked = Line(), iter([False] * (entry["to"] - 1) + [True])
    with pytest.raises(Interrupted, match=f"after step {entry['to']} "):
        train_line(tmp_path / "hand", model, [Cliff(model, BOUND)], stop=lambda: next(asked), **CLIFF)
    model = Line()
    by_hand = train_line(tmp_path / "hand", model, [Cliff(model, BOUND)], **CLIFF | {"learning_rate": 0.05})
    assert by_hand.rows == state.rows
    for name, tensor in state.tensors(torch.zeros(1, 1)).items():
        assert torch.equal(tensor, by_hand.tensors(torch.zeros(1, 1))[name]), name
    said = capsys.readouterr().err
    assert f"rolled_back step={entry['step']} to={entry['to']} message=6 steps in a row" in said
    assert "learning_rate=0.5 time=1 times=2" in said


@pytest.mark.parametrize("every", [4, 100])
def test_a_training_stopped_after_every_step_rolls_back_to_the_same_step(every: int, tmp_path: Path) -> None:
    """Also if nonfinite steps begin before the first checkpoint: then training goes back to the start."""
    changed = CLIFF | {"checkpoint_every": every}
    model = Line()
    whole = train_line(tmp_path / "whole", model, [Cliff(model, BOUND)], **changed)
    assert [entry["to"] > 0 for entry in whole.rollbacks] == [every == 4]
    for _ in range(100):
        model, asked = Line(), iter([True])
        try:
            pieces = train_line(
                tmp_path / "pieces", model, [Cliff(model, BOUND)], stop=lambda asked=asked: next(asked), **changed
            )
        except Interrupted:
            assert len(Checkpoints(tmp_path / "pieces", "d").steps()) <= 4, "two to resume from, two to go back to"
            continue
        break
    assert (pieces.rows, pieces.rollbacks, pieces.skipped) == (whole.rows, whole.rollbacks, whole.skipped)
    for name, tensor in whole.tensors(torch.zeros(1, 1)).items():
        assert torch.equal(tensor, pieces.tensors(torch.zeros(1, 1))[name]), name


def test_a_rollback_skips_and_quarantines_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training goes back to the checkpoint before it."""
    settings, model = CLIFF | {"checkpoint_every": 5}, Line()
    to = train_line(tmp_path / "whole", model, [Cliff(model, BOUND)], **settings).rollbacks[0]["to"]
    model = Line()
    phase, checkpoints = Cliff(model, BOUND), Checkpoints(tmp_path / "damaged", "d")

    def damage(batch: Batch) -> None:
        file = checkpoints.at(to) / "tensors.safetensors"
        if batch.step == to + 1 and not (checkpoints.folder / f"damaged-{to:08d}").exists():
            file.write_bytes(file.read_bytes()[:-1])

    phase.watch = damage
    state = train_line(tmp_path / "damaged", model, [phase], **settings)
    assert [entry["to"] for entry in state.rollbacks] == [to - 5] == [5]
    assert f"damaged_checkpoint step={to} kept={checkpoints.folder}/damaged-{to:08d} message=" in capsys.readouterr().err
    assert (checkpoints.folder / f"damaged-{to:08d}").exists()


def test_after_the_last_rollback_training_fails_and_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, phases = nonfinite_phases(set(range(5, 100)), "gradient", 1)
    settings: dict[str, Any] = {"steps": 20, "validate_every": 3, "checkpoint_every": 2, "skip_limit": 1}
    with pytest.raises(StepError) as failed:
        train_line(tmp_path, model, phases, **settings)
    folder = tmp_path / "d/diverged"
    assert str(failed.value).startswith("training diverged at step 7, after 2 rollbacks: 2 steps in a row were skipped")
    assert "gradient of model.weight in phase fit is not finite" in str(failed.value)
    assert f"lower training.learning_rate or set training.gradient_clip (curve, batches and parameters: {folder})" in str(
        failed.value
    )
    verify(folder)
    record = json.loads((folder / "diverged.json").read_text())
    assert (record["step"], record["skipped"], record["learning_rate_factor"]) == (7, 2, 0.25)
    assert [(back["step"], back["to"]) for back in record["rollbacks"]] == [(7, 4), (7, 4)]
    for found, step in zip(record["breaks"], (5, 6), strict=True):
        assert found["step"] == step
        assert found["examples"] == batch_indices(10, 4, 11, step).tolist()
        assert (found["phase"], found["parameters"], found["gradient_norm"]) == ("fit", ["model.weight"], "inf")
        assert math.isfinite(float(found["losses"][0]))
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["3", "6", "7"][:2]
    assert capsys.readouterr().err.count("metrics step=3 ") == 1

    with pytest.raises(StepError, match="diverged at step 7, after 2 rollbacks"):  # a later run continues there
        train_line(tmp_path, *nonfinite_phases(set(range(5, 100)), "gradient", 1), **settings)
    said = capsys.readouterr().err
    assert f"diverged_before step=6 record={folder}" in said
    assert "resumed step=6" in said


@pytest.mark.parametrize(("how", "words"), [("loss", "loss of phase fit is nan"), ("norm", "gradient of model.weight")])
def test_training_fails_at_once_if_no_skip_is_allowed(how: str, words: str, tmp_path: Path) -> None:
    model, phases = nonfinite_phases({3}, how, 0)
    phases[0].register_parameter("broken", nn.Parameter(torch.tensor(math.nan)) if how == "loss" else None)
    with pytest.raises(
        StepError, match=f"^training diverged at step 4: 1 steps in a row were skipped, the last because the {words}"
    ):
        train_line(tmp_path, model, phases, skip_limit=0, rollbacks=0)
    (found,) = json.loads((tmp_path / "d/diverged/diverged.json").read_text())["breaks"]
    assert found["parameters"] == (["broken"] if how == "loss" else ["model.weight"])


def test_a_nonfinite_loss_with_finite_weights_names_the_largest_parameter(tmp_path: Path) -> None:
    model, phases = nonfinite_phases({3}, "loss", 0)
    phases[0].register_parameter("great", nn.Parameter(torch.tensor(-99.0)))
    with pytest.raises(StepError):
        train_line(tmp_path, model, phases, skip_limit=0, rollbacks=0)
    (found,) = json.loads((tmp_path / "d/diverged/diverged.json").read_text())["breaks"]
    assert (found["parameters"], found["losses"]) == (["great"], ["nan"])


def test_a_nonfinite_score_causes_a_rollback(tmp_path: Path) -> None:
    scores = iter([1.0, math.inf, 2.0, 3.0, 4.0])
    model = Line()
    state = train_line(tmp_path, model, [Fit(model)], lambda _: next(scores), checkpoint_every=2)
    (entry,) = state.rollbacks
    assert (entry["step"], entry["to"], entry["why"]) == (4, 2, "the validation score is inf")
    assert [row["validation"] for row in state.rows] == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(StepError, match="at step 2, after 2 rollbacks: the validation score is nan"):
        train_line(tmp_path / "never", Line(), [Fit(Line())], lambda _: math.nan)
    rows = list(csv.DictReader((tmp_path / "never/d/diverged/curve.csv").open()))
    assert [row["step"] for row in rows] == ["2"], "what there was of a curve is kept"


def test_a_nonfinite_curve_value_of_a_phase_is_left_out_of_the_row(tmp_path: Path) -> None:
    class Curious(Fit):
        def curves(self) -> dict[str, float]:
            return {"odd": math.inf if self.model.seen % 4 else 7.0}

    model = Line()
    rows = train_line(tmp_path, model, [Curious(model)]).rows
    assert [row.get("odd") for row in rows] == [None, 7.0, None, 7.0]


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_the_result_does_not_depend_on_the_length_of_a_block(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two phases, skips at the first and last step and within blocks, and a rollback."""
    states = []
    for name, steps in (("5", 5), (str(length), length)):
        monkeypatch.setattr("remint.training.loop.BLOCK", steps)
        model, phases = nonfinite_phases({0, 3, 4, 7, 11, 12, 13, 19}, "gradient", 1)
        settings = {"steps": 20, "skip_limit": 2, "rollbacks": 1, "validate_every": 7, "checkpoint_every": 6}
        with contextlib.suppress(StepError):
            states.append(train_line(tmp_path / name, model, phases, **settings))
        states.append(
            [(path.name, path.read_bytes()) for path in sorted((tmp_path / name).rglob("*")) if path.suffix in (".json", ".csv")]
        )
    assert states[0] == states[1] and "diverged.json" in str(states[0]), "the same failure, with the same record"


def test_slow_steps_are_blocks_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a stop of several ranks does not wait for five of them. The weights are the same."""
    blocks: list[int] = []
    real = StepRunner.begin_block

    def begin_block(runner: StepRunner) -> None:
        blocks.append(runner.state.step)
        real(runner)

    monkeypatch.setattr(StepRunner, "begin_block", begin_block)
    quick, slow = Line(), Line()
    train_line(tmp_path / "quick", quick, [Fit(quick)], validate_every=100)
    assert blocks == [0, 5]
    blocks.clear()
    monkeypatch.setattr("remint.training.loop.SLOW", 0.0)
    train_line(tmp_path / "slow", slow, [Fit(slow)], validate_every=100)
    assert blocks == [0, 5, 6, 7]
    assert torch.equal(quick.weight, slow.weight)
