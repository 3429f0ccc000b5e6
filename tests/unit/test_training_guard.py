"""The collapse guard: coverage of points in worked examples, and the rules of the verdict."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remint.distributed.world import World
from remint.models.contract import Model
from remint.records import Column, DataSpec
from remint.settings.recipe import TrainingSettings
from remint.training.guard import FRACTION_OF_BEST, PATIENCE, Guard, build_guard, coordinates
from remint.training.state import Row

ONE = World(0, 1, torch.device("cpu"))
LINE = DataSpec(shape=(1,), columns=(Column(name="place"),))
TEN = torch.arange(10.0).unsqueeze(1)  # with five neighbours, their balls have the radii 5, 4, 3, 3, 3, 3, 3, 3, 4, 5


class FixedSampler(Model):
    """Model that draws the given examples for any noise."""

    def __init__(self, x_NX: Tensor) -> None:
        super().__init__()
        self.x_NX, self.sample_noise = x_NX, 1
        self.scale = nn.Parameter(torch.ones(()))

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.x_NX[: len(noise_BN)]


def watch(x_NX: Tensor, train_NX: Tensor, real_NX: Tensor, spec: DataSpec = LINE, **settings: Any) -> Guard:
    made = build_guard(FixedSampler(x_NX), train_NX, real_NX, spec, TrainingSettings.model_validate(settings), ONE)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("samples", "reached", "coverage"),
    [
        (TEN, 1.0, 1.0),
        (torch.zeros(10, 1), 0.5, 0.4),  # its neighbours are 0 .. 4, and the ball of 4 does not contain it
        (torch.full((10, 1), 4.5), 0.6, 0.6),  # 2 and 7 are both its fifth neighbour
        (torch.full((10, 1), 14.0), 0.5, 0.1),  # a ball contains its boundary
        (torch.full((10, 1), 14.1), 0.5, 0.0),
    ],
)
def test_recall_and_coverage_of_points_on_a_line(samples: Tensor, reached: float, coverage: float) -> None:
    assert watch(samples, TEN, TEN).measure(FixedSampler(samples)) == pytest.approx({"reached": reached, "coverage": coverage})


def test_the_reference_is_what_as_many_training_examples_reach() -> None:
    assert watch(TEN, TEN, TEN).reference == 1.0
    assert watch(TEN, torch.cat([torch.zeros(39, 1), torch.full((1, 1), 4.5)]), TEN).reference == 0.8  # of evenly spaced examples


def test_a_model_that_draws_the_mean_covers_nothing() -> None:
    """In 50 dimensions the mean is in nearly every ball."""
    spec = DataSpec(shape=(50,), columns=tuple(Column(name=str(place)) for place in range(50)))
    real, train = torch.randn(2, 200, 50, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(200, 50)
    radius_N = torch.cdist(real, real).topk(6, dim=1, largest=False).values[:, -1]
    assert (real.norm(dim=1) <= radius_N).double().mean() > 0.9, "the case itself"
    watching = watch(mean, train, real, spec)
    assert watching.measure(FixedSampler(mean)) == pytest.approx({"reached": 5 / 200, "coverage": 5 / 200})
    assert watching.reference > 0.7


def test_the_distance_of_images_is_that_of_their_pixels_and_zero_for_equal_ones() -> None:
    """Six copies of each of two images: every ball has radius 0 and contains only images with equal pixels."""
    spec = DataSpec(shape=(3, 20, 20), levels=256)
    first, second = torch.randint(256, (2, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    real = torch.stack([first, second] * 6)
    nearly = first.clone()
    nearly[0, 0, 0] ^= 1
    for samples, reached, coverage in (
        (real, 1.0, 1.0),
        (first.expand(12, -1, -1, -1), 0.5, 0.5),
        (nearly.expand(12, -1, -1, -1), 0.5, 0.0),
    ):
        assert watch(samples, real, real, spec).measure(FixedSampler(samples)) == {"reached": reached, "coverage": coverage}


def test_the_coordinates_of_a_row_are_numbers_and_simplex_corners() -> None:
    kinds = DataSpec(
        shape=(2,), columns=(Column(name="height", missing=True), Column(name="colour", categories=("red", "green", "blue")))
    )
    nan = math.nan
    rows = torch.tensor([[2.0, 0.0], [2.0, 1.0], [0.0, 2.0], [nan, 2.0], [2.0, nan]])
    expected = [[0.0, 1.0, 5**0.5, 6**0.5, 0.5**0.5], [1.0, 0.0, 5**0.5, 6**0.5, 0.5**0.5]]
    apart = torch.cdist(coordinates(rows, kinds)[:2], coordinates(rows, kinds))
    torch.testing.assert_close(apart, torch.tensor(expected, dtype=torch.float64))


def test_the_guard_watches_models_without_a_score_or_with_an_explicit_limit() -> None:
    class Scored(FixedSampler):
        latent_noise = 1

        def elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
            raise NotImplementedError

    def made(model: Model, count: int = 10, **settings: Any) -> Guard | None:
        return build_guard(model, TEN, TEN[:count], LINE, TrainingSettings.model_validate(settings), ONE)

    assert made(Scored(TEN)) is None, "its score finds a collapse"
    asked, unasked = made(Scored(TEN), collapse=0.5), made(FixedSampler(TEN))
    assert asked is not None
    assert unasked is not None
    assert (asked.limit, unasked.limit) == (0.5, 0.6)
    assert made(FixedSampler(TEN), collapse=0.0) is None
    assert made(FixedSampler(TEN), count=5) is None, "nobody has five neighbours"
    assert made(nn.Identity()) is None  # type: ignore[arg-type]


def test_the_guard_looks_at_most_fifty_times_and_at_the_end() -> None:
    for steps, validate_every in ((12, 5), (5000, 100), (5001, 100), (60000, 100), (30, 100)):
        watching = watch(TEN, TEN, TEN, steps=steps, validate_every=validate_every)
        looks = [step for step in range(1, steps + 1) if watching.due(step)]
        assert looks[-1] == steps
        assert all(step % validate_every == 0 for step in looks[:-1])
        assert len(looks) <= 51
        assert len(looks) >= min(26, -(-steps // validate_every))


def rows(*reached: float) -> list[Row]:
    """Return rows with a look every 100 steps, and rows without a look between them."""
    looks: list[Row] = [{"step": 100 * look, "reached": value} for look, value in enumerate(reached, start=1)]
    return [row for look in looks for row in (look, {"step": look["step"] + 50})]


@pytest.mark.parametrize(
    ("seen", "collapsed"),
    [
        ([0.9] * 20, False),
        ([0.0] * 6 + [0.5] * 3, False),  # five looks after the warm-up of six: no verdict yet
        ([0.45] * 11, True),
        ([0.45, 0.5, 0.46, 0.48, 0.44, 0.49, *[0.47] * 5], True),
        ([0.02 * look for look in range(20)], False),  # low, but increasing
        ([0.45] * 12 + [0.49] * 4 + [0.9], False),
        ([0.45] * 7 + [0.55] + [0.5] * 3, False),  # the limit is 0.6 of the reference, 0.8: 0.48
        ([0.8] * 6 + [0.59] * 4, False),
        ([0.8] * 6 + [0.59] * 5, True),  # above the limit, but far below its best
        ([0.8] * 6 + [0.59] * 4 + [0.61], False),
    ],
)
def test_the_verdict_uses_the_last_five_looks(seen: list[float], collapsed: bool) -> None:
    assert PATIENCE == 5
    assert FRACTION_OF_BEST == 0.75
    watching = Guard(measure=lambda _: {}, reference=0.8, limit=0.6, every=100, steps=2000)
    said = watching.collapsed(rows(*seen))
    assert (said is not None) == collapsed, said


def test_a_model_at_the_start_of_training_has_not_collapsed() -> None:
    short = Guard(measure=lambda _: {}, reference=1.0, limit=0.6, every=100, steps=1000)
    assert short.collapsed(rows(*[0.1] * 9)) is None, "the fifth of its looks came at step 500"
    assert short.collapsed(rows(*[0.1] * 10)) is not None
