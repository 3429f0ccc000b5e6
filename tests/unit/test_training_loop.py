"""The loop against exact oracles: a hand-written training, closed forms, and phases that record their inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.distributed.machine import deterministic
from remint.errors import Interrupted
from remint.models.contract import Batch, Model, Phase
from remint.records import DataSpec
from remint.settings.recipe import TrainingSettings
from remint.training import guard as guard_module
from remint.training.ema import AveragedModel
from remint.training.guard import Guard
from remint.training.state import Ending, Row
from remint.training.step import _norm, learning_rate_factor
from remint.training.validation import scorer
from tests.support.loop_cases import ONE_PROCESS, Fit, Line, reference_training, train_line


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with deterministic(threads=1):
        yield


def test_the_loop_equals_adamw_with_the_schedule_on_the_sampled_batches(tmp_path: Path) -> None:
    model = Line()
    state = train_line(tmp_path, model, [Fit(model)], weight_decay=0.01, gradient_clip=1.0, validate_every=1)
    weight, average, losses = reference_training(range(8), weight_decay=0.01, clip=1.0)
    torch.testing.assert_close(model.weight, weight)
    torch.testing.assert_close(state.average.model.state_dict()["weight"], average)
    assert [row["fit_loss"] for row in state.rows] == pytest.approx(losses, rel=1e-6)
    assert state.served().state_dict()["seen"] == 8  # buffers are copied, not averaged


def test_a_row_has_the_mean_loss_since_the_previous_row(tmp_path: Path) -> None:
    model, other = Line(), Line()
    each = [row["fit_loss"] for row in train_line(tmp_path / "a", model, [Fit(model)], validate_every=1, steps=7).rows]
    state = train_line(tmp_path / "b", other, [Fit(other)], validate_every=3, steps=7)
    assert [row["step"] for row in state.rows] == [3, 6, 7]
    assert [row["fit_loss"] for row in state.rows] == pytest.approx([sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]])


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    factors = [learning_rate_factor(step, 11, warmup=0.2, final=0.1) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.55)  # half of the decay
    assert factors[10] == pytest.approx(0.1)
    assert learning_rate_factor(0, 1, warmup=0.0, final=0.1) == 1.0


def test_only_the_running_phase_gets_gradients(tmp_path: Path) -> None:
    """Two phases share a loss but train one weight each, like a critic and a generator."""
    first, second = Line(), Line()

    class Against(Fit):
        def __init__(self, mine: Line, other: Line) -> None:
            super().__init__(mine)
            self.reference_frozen(other=other)

        def forward(self, batch: Batch) -> Tensor:
            assert self.model.weight.requires_grad
            assert not self.other.weight.requires_grad
            assert self.other.weight.grad is None
            return super().forward(batch) + (self.model.weight * self.other.weight).sum()

    phases: list[Phase] = [Against(first, second), Against(second, first)]
    phases[1].learning_rate = 1e-9
    train_line(tmp_path, first, phases)
    assert (second.weight - torch.tensor([2.0, -1.0])).abs().max() < 1e-6
    assert (first.weight - torch.tensor([2.0, -1.0])).abs().min() > 1e-2


def test_a_phase_gets_its_progress_step_and_noise(tmp_path: Path) -> None:
    model, batches = Line(), []
    phases = [Fit(model), Fit(model)]
    for phase in phases:
        phase.watch = batches.append
    train_line(tmp_path, model, list(phases), steps=4)
    assert [batch.step for batch in batches] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [batch.progress for batch in batches[::2]] == [0.0, 0.25, 0.5, 0.75]
    assert all(batch.x_BX.dtype == torch.float32 and batch.x_BX.shape == (4, 1, 1, 1) for batch in batches)
    assert len({batch.noise_BN[0, 0].item() for batch in batches}) == 8


def test_the_model_with_the_best_score_is_served_and_patience_ends_training(tmp_path: Path) -> None:
    model, kept = Line(), []
    scores = iter([3.0, 1.0, 2.0, 1.0, 5.0])

    def score(judged: Model) -> float:
        kept.append(judged.state_dict()["weight"].clone())
        return next(scores)

    state = train_line(tmp_path, model, [Fit(model)], score, steps=20, patience=2)
    assert [row["validation"] for row in state.rows] == [3.0, 1.0, 2.0, 1.0]  # an equal score is not a new best
    assert state.step == 8
    assert state.best_row == state.rows[1]
    assert torch.equal(state.served().state_dict()["weight"], kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_without_a_score_the_last_average_is_served(tmp_path: Path) -> None:
    model = Line()
    state = train_line(tmp_path, model, [Fit(model)])
    assert state.best_row is None
    assert state.scores_since_best == 0
    assert torch.equal(state.served().state_dict()["weight"], state.average.model.state_dict()["weight"])


@pytest.fixture
def guard_from_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard judge from the first step."""
    monkeypatch.setattr(guard_module, "MIN_STEPS", 0)


def guard_with_coverage(*coverage: float, steps: int, every: int = 2) -> tuple[Guard, list[Tensor]]:
    """Make a guard that measures the given coverage, and the list of weights that it saw."""
    seen, kept = iter(coverage), list[Tensor]()

    def measure(judged: Model) -> Row:
        kept.append(judged.state_dict()["weight"].clone())
        share = next(seen)
        return {"coverage": share, "reached": share}

    return Guard(measure, reference=1.0, limit=0.6, every=every, steps=steps), kept


@pytest.mark.usefixtures("guard_from_first_step")
def test_a_collapse_ends_training_and_the_model_with_the_best_coverage_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Line()
    guard, kept = guard_with_coverage(0.5, 0.8, 0.8, 0.4, 0.4, 0.3, 0.4, 0.3, steps=24)
    state = train_line(tmp_path, model, [Fit(model)], guard=guard, steps=24)
    assert state.ending is not None
    assert state.ending.ended == "collapsed"
    assert "its samples reach 30% as much as real examples do, less than the limit of 60%, at step 16" in state.ending.reason
    assert (state.step, state.served_row) == (16, state.rows[2])  # the later of two with equal coverage
    assert torch.equal(state.served().state_dict()["weight"], kept[2])
    assert "collapsed step=16 served=6" in capsys.readouterr().err


@pytest.mark.usefixtures("guard_from_first_step")
@pytest.mark.parametrize("stopped_at", [3, 7, 8, 15])
def test_a_resumed_training_remembers_the_collapse_and_the_best_model(stopped_at: int, tmp_path: Path) -> None:
    covered = [0.5, 0.8, 0.8, 0.4, 0.4, 0.3, 0.4, 0.3]
    model = Line()
    whole = train_line(tmp_path / "whole", model, [Fit(model)], guard=guard_with_coverage(*covered, steps=24)[0], steps=24)
    model, asked = Line(), iter([False] * (stopped_at - 1) + [True])
    with pytest.raises(Interrupted):
        guard, kept = guard_with_coverage(*covered, steps=24)
        train_line(tmp_path / "pieces", model, [Fit(model)], guard=guard, steps=24, stop=lambda: next(asked))
    model = Line()
    again = train_line(
        tmp_path / "pieces", model, [Fit(model)], guard=guard_with_coverage(*covered[len(kept) :], steps=24)[0], steps=24
    )
    assert (again.step, again.rows, again.ending) == (whole.step, whole.rows, whole.ending)
    assert torch.equal(again.served().state_dict()["weight"], whole.served().state_dict()["weight"])


def test_a_healthy_model_is_served_as_of_the_last_step(tmp_path: Path) -> None:
    model, other, third = Line(), Line(), Line()
    guard, _ = guard_with_coverage(0.5, 0.9, 0.8, 0.85, steps=8)
    state = train_line(tmp_path / "a", model, [Fit(model)], guard=guard, patience=1)
    unwatched = train_line(tmp_path / "b", other, [Fit(other)])
    assert state.ending == unwatched.ending == Ending("finished")
    assert (state.served_row, state.scores_since_best) == (None, 0)
    assert torch.equal(state.served().state_dict()["weight"], unwatched.served().state_dict()["weight"])
    guard, _ = guard_with_coverage(0.5, 0.9, steps=8, every=4)
    assert ["coverage" in row for row in train_line(tmp_path / "c", third, [Fit(third)], guard=guard).rows] == [
        False,
        True,
        False,
        True,
    ]


def test_the_average_of_a_constant_is_the_constant_without_bias_from_the_start() -> None:
    model = Line()
    average = AveragedModel(model)
    with torch.no_grad():
        model.weight.fill_(7.0)
    for step in range(200):
        average.update(0.999, step)
    # prod (1 + t) / (10 + t) for t < 200 = 9! 200! / 209!: the weight of the first value is negligible
    torch.testing.assert_close(average.model.state_dict()["weight"], torch.tensor([7.0, 7.0]))


class Uniform(Model):
    """HasLogProb: every image is equally likely."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.density_noise = spec, spec.dims

    def log_prob(self, x_BCHW: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert noise_BN.shape == (len(x_BCHW), self.spec.dims)
        return torch.full((len(x_BCHW),), -self.spec.dims * math.log(self.spec.levels))


class Bound(Model):
    """HasElbo: one nat for each dimension, plus the noise, which has mean 0."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.latent_noise = spec, 1

    def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return noise_KBN[..., 0] - self.spec.dims


def test_scores_are_bits_per_dimension() -> None:
    spec = DataSpec(shape=(1, 2, 2), levels=8)
    x_NCHW = np.zeros((600, 1, 2, 2), np.uint8)
    uniform = scorer(Uniform(spec), x_NCHW, None, spec, TrainingSettings(), ONE_PROCESS)
    assert uniform is not None
    assert uniform(Uniform(spec)) == pytest.approx(3.0, abs=1e-6)
    bound = scorer(Bound(spec), x_NCHW, None, spec, TrainingSettings(), ONE_PROCESS)
    assert bound is not None
    assert bound(Bound(spec)) == pytest.approx(1 / math.log(2), abs=0.03)
    assert bound(Bound(spec)) == bound(Bound(spec))  # the noise never changes
    assert scorer(Line(), x_NCHW, None, spec, TrainingSettings(), ONE_PROCESS) is None


class Bright(Bound):
    """HasElbo: the sum of the pixels and the class, plus the noise."""

    def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert y_B is not None
        return noise_KBN[..., 0] + x_BCHW.flatten(1).sum(1) + 1000 * y_B


def test_a_score_takes_evenly_spaced_examples_and_their_classes() -> None:
    spec, numbers_N = DataSpec(shape=(1, 1, 1), levels=256), np.arange(601)
    x_NCHW, y_N = (numbers_N % 256).astype(np.uint8)[:, None, None, None], numbers_N // 256

    def score(x_NCHW: np.ndarray, y_N: np.ndarray, most: int) -> float:
        found = scorer(Bright(spec), x_NCHW, y_N, spec, TrainingSettings(validation_examples=most), ONE_PROCESS)
        assert found is not None
        return found(Bright(spec))

    assert score(x_NCHW, y_N, 301) == score(x_NCHW[::2], y_N[::2], 301)
    assert score(x_NCHW, y_N, 301) != score(x_NCHW, y_N, 601)
    assert score(x_NCHW, y_N, 601) == score(x_NCHW, y_N, 1000), "a smaller split is scored whole"


@pytest.mark.parametrize("value", [1.0, 1e-30, 1e25, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_a_gradient_is_that_of_torch_to_the_bit(value: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((7,), (64, 33), (), (3, 2, 5, 5))]
    gradients[1][5, 5] = value
    assert torch.equal(_norm(gradients), torch.nn.utils.get_total_norm(gradients)) or math.isnan(value)
    assert bool(_norm(gradients).isfinite()) == (math.isfinite(value) and (value < 1e20 or dtype == torch.float64))
    assert _norm([]) == 0
