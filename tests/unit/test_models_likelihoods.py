"""Likelihoods against their distribution functions: they sum or integrate to 1, and draws follow them. In float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.contract import standard_normal
from remint.models.layers import to_unit
from remint.models.likelihoods import Bernoulli, Categorical, DiscretisedLogistic, LevelLikelihood, SigmaGaussian
from remint.models.pixel_likelihood import PixelLikelihood
from remint.models.row_likelihoods import GaussianMixtureColumns, RowFeatures, RowLikelihood, SigmaGaussianColumns
from remint.records import Column, DataSpec
from tests.support.models_cases import MIXED, examples

IMAGE = DataSpec(shape=(1, 2, 3), levels=5)
# Numbers before, between and after the categories: a misplaced column is found.
TABLE = DataSpec(
    shape=(5,),
    columns=(
        Column(name="a", missing=True),
        Column(name="b", categories=("x", "y", "z"), missing=True),
        Column(name="c"),
        Column(name="d", categories=("x", "y")),
        Column(name="e", missing=True),
    ),
)
CATEGORIES = DataSpec(shape=(2,), columns=(Column(name="a", categories=("x", "y")), Column(name="b", categories=("x", "y", "z"))))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def law(kind: str, levels: int) -> LevelLikelihood:
    if kind.startswith("gaussian"):
        gaussian = SigmaGaussian(levels).requires_grad_(False)
        gaussian.log_sigma.fill_(math.log(float(kind.removeprefix("gaussian "))))
        return gaussian
    made = {
        "bernoulli": Bernoulli,
        "categorical": Categorical,
        "logistic": lambda levels: DiscretisedLogistic(levels, 1),
        "mixture": lambda levels: DiscretisedLogistic(levels, 4),
    }
    return made[kind](levels)


GAUSSIANS = ["gaussian 0.02", "gaussian 0.3", "gaussian 2.0"]
LAWS = [(kind, levels) for kind in ("categorical", "logistic", "mixture", *GAUSSIANS) for levels in (2, 17, 256)]


@pytest.mark.parametrize(("kind", "levels"), [("bernoulli", 2), *LAWS])
def test_probabilities_of_all_levels_sum_to_one(kind: str, levels: int) -> None:
    one = law(kind, levels)
    theta = 4 * standard_normal((100, one.parameters_per_dim), 1).double().expand(levels, -1, -1)
    log_prob = one.log_prob(torch.arange(levels).unsqueeze(1).expand(-1, 100), theta)
    assert bool((log_prob <= 0).all())
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(100), rtol=0, atol=1e-12)


def test_the_discretised_logistic_equals_differences_of_its_distribution_function() -> None:
    theta = torch.tensor([0.3, -0.4, 0.2, -0.6, -1.0, -0.5])  # two logits, two means, two log scales
    edge = (torch.arange(5) + 0.5) * 2 / 4 - 1
    share = theta[:2].softmax(0)
    cdf = torch.stack([share[m] * torch.sigmoid((edge - theta[2 + m]) / theta[4 + m].exp()) for m in range(2)]).sum(0)
    cdf[-1] = 1.0
    expected = torch.diff(cdf, prepend=torch.zeros(1))
    log_prob = DiscretisedLogistic(5, 2).log_prob(torch.arange(5), theta.expand(5, -1))
    torch.testing.assert_close(log_prob.exp(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_the_sigma_gaussian_equals_differences_of_its_distribution_function(kind: str) -> None:
    gaussian, mean = law(kind, 17), torch.linspace(-1.5, 1.5, 31)
    assert isinstance(gaussian, SigmaGaussian)
    edge = to_unit(torch.arange(17) + 0.5, 17)[:, None]
    cdf = torch.special.ndtr((edge - mean) / gaussian.log_sigma.exp())
    cdf[-1] = 1.0
    expected = torch.diff(cdf, dim=0, prepend=torch.zeros(1, 31))
    log_prob = gaussian.log_prob(torch.arange(17)[:, None].expand(-1, 31), mean[:, None].expand(17, -1, -1))
    torch.testing.assert_close(log_prob.exp(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["logistic", "gaussian 0.001"])
def test_an_impossible_level_keeps_a_finite_likelihood_and_gradient_in_single_precision(kind: str) -> None:
    one = law(kind, 256).float()
    theta = torch.tensor([[0.0, -1.0, -7.0], [0.0, 1.0, -7.0]], dtype=torch.float32)
    theta = theta[:, : one.parameters_per_dim + 1][:, -one.parameters_per_dim :].requires_grad_()
    log_prob = one.log_prob(torch.tensor([200, 3]), theta)
    (gradient,) = torch.autograd.grad(log_prob.sum(), theta)
    assert bool(log_prob.isfinite().all()) and bool(gradient.isfinite().all()) and bool((log_prob < -50).all())


@pytest.mark.parametrize("kind", ["logistic", "gaussian 0.05", "gaussian 1.0"])
def test_single_precision_is_near_double(kind: str) -> None:
    one, levels = law(kind, 256), torch.arange(256)
    theta = standard_normal((256, one.parameters_per_dim), 5).double()
    double = one.log_prob(levels, theta)
    single = one.float().log_prob(levels, theta.float()).double()
    torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "levels"), [("bernoulli", 2), ("categorical", 5), ("gaussian 0.3", 7)])
def test_draws_have_the_probabilities_of_the_likelihood(kind: str, levels: int) -> None:
    n, one = 10_000, law(kind, levels)
    theta = standard_normal((1, 1, one.parameters_per_dim), 2).double()
    drawn = one.sample(theta.expand(n, -1, -1), quantiles(n).unsqueeze(1))
    share = torch.bincount(drawn.flatten().long(), minlength=levels) / n
    exact = one.log_prob(torch.arange(levels), theta[0].expand(levels, -1)).exp()
    torch.testing.assert_close(share, exact, rtol=0, atol=1.01 / n)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_logistic_draws_have_the_probabilities_of_the_likelihood(mixtures: int) -> None:
    side, one = 400, DiscretisedLogistic(7, mixtures)
    theta = standard_normal((1, 1, one.parameters_per_dim), 3).double()
    noise = torch.cartesian_prod(quantiles(side), quantiles(side))
    drawn = one.sample(theta.expand(len(noise), -1, -1), noise)
    share = torch.bincount(drawn.flatten().long(), minlength=7) / len(noise)
    exact = one.log_prob(torch.arange(7), theta[0].expand(7, -1)).exp()
    torch.testing.assert_close(share, exact, rtol=0, atol=3 / side)


def quantiles(count: int) -> Tensor:
    """Return standard normal quantiles at equal steps of probability."""
    return torch.special.ndtri((torch.arange(count) + 0.5) / count)


def test_bernoulli_requires_binarised_images() -> None:
    with pytest.raises(SettingsError, match=r"model\.likelihood: bernoulli .* 2 levels, but these have 17"):
        Bernoulli(17)


@pytest.mark.parametrize("kind", ["categorical", "mixture", "gaussian 0.3"])
def test_the_log_likelihood_of_an_image_is_the_sum_over_its_pixels(kind: str) -> None:
    one = law(kind, IMAGE.levels)
    image = PixelLikelihood(one, IMAGE, sample_as="mode")
    x, theta = examples(IMAGE, 4), standard_normal((3, 4, image.outputs), 1).double()
    by_pixel = theta.view(3, 4, IMAGE.dims, -1)
    expected = sum(one.log_prob(x.flatten(1)[:, d], by_pixel[:, :, d]) for d in range(IMAGE.dims))
    torch.testing.assert_close(image.log_prob(x, theta), expected)


@pytest.mark.parametrize("kind", ["categorical", "mixture", "gaussian 0.3"])
def test_the_mode_of_each_pixel_is_the_level_of_its_highest_probability(kind: str) -> None:
    image = PixelLikelihood(law(kind, IMAGE.levels), IMAGE, sample_as="mode")
    assert image.noise_size == 0
    theta = 2 * standard_normal((20, image.outputs), 6).double()
    by_pixel = theta.view(20, IMAGE.dims, -1)
    levels = torch.arange(IMAGE.levels)[:, None, None].expand(-1, 20, IMAGE.dims)
    by_level = image.law.log_prob(levels, by_pixel.expand(IMAGE.levels, -1, -1, -1))
    shown = image.sample(theta, torch.zeros(20, 0))
    assert shown.shape == (20, *IMAGE.shape) and len(shown.unique(dim=0)) > 1
    assert torch.equal(shown.flatten(1).long(), by_level.argmax(0))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "levels"), [("bernoulli", 2), *LAWS])
def test_the_mode_is_that_of_a_search_through_all_levels(kind: str, levels: int, precision: torch.dtype) -> None:
    """Equal to the bit, the least of equal ones: narrow and wide laws, with their means inside and outside of the levels."""
    one = law(kind, levels).to(precision)
    scale_P = torch.tensor([0.3, 1.0, 3.0, 30.0]).repeat_interleave(1_000)[:, None]
    theta = scale_P * standard_normal((4_000, one.parameters_per_dim), 8).double()
    theta[:2_000:2, -one.parameters_per_dim // 3 :] -= 3.0  # of logistics: widths as trained models have them
    theta = theta.to(precision).view(40, 100, -1)
    highest, expected = torch.full((40, 100), -torch.inf).to(precision), torch.zeros((40, 100), dtype=torch.uint8)
    for level in range(levels):
        log_prob = one.log_prob(torch.full_like(highest, level), theta)
        expected[log_prob > highest] = level
        highest = torch.maximum(highest, log_prob)
    assert torch.equal(one.mode(theta), expected)


@pytest.mark.parametrize("columns", [SigmaGaussianColumns(2), GaussianMixtureColumns(3), GaussianMixtureColumns(1)])
def test_the_density_of_a_column_integrates_to_one_and_matches_its_draws(
    columns: SigmaGaussianColumns | GaussianMixtureColumns,
) -> None:
    columns = columns.double().requires_grad_(False)
    if isinstance(columns, SigmaGaussianColumns):
        columns.log_sigma_D.copy_(torch.tensor([-1.0, 0.5]))
    theta = standard_normal((1, 2, columns.parameters_per_dim), 4).double().clamp(-1.5, 0.9)
    grid = torch.linspace(-20, 20, 8_001)
    density = columns.log_prob(grid[:, None].expand(-1, 2), theta.expand(len(grid), -1, -1)).exp()
    torch.testing.assert_close(density.sum(0) * 0.005, torch.ones(2), rtol=0, atol=1e-9)
    side = 200
    one = quantiles(side**2)[:, None] if columns.noise_per_dim == 1 else torch.cartesian_prod(quantiles(side), quantiles(side))
    noise = one.repeat_interleave(2, dim=1)
    drawn = columns.sample(theta.expand(side**2, -1, -1), noise)
    below = torch.stack([(drawn <= edge).double().mean(0) for edge in grid[::400]])
    torch.testing.assert_close(below, (density.cumsum(0) * 0.005)[::400], rtol=0, atol=2 / side)


@pytest.fixture(params=["sigma_gaussian", "gaussian_mixture"])
def rows(request: pytest.FixtureRequest) -> RowLikelihood:
    made = RowLikelihood(request.param, TABLE, mixtures=2).double().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    return made


def test_the_log_likelihood_of_a_row_is_the_sum_over_its_columns(rows: RowLikelihood) -> None:
    x = torch.tensor([[0.3, 2.0, -0.7, 1.0, 1.1], [-1.0, 0.0, 0.2, 0.0, 0.5]])
    theta = standard_normal((4, 2, rows.outputs), 1).double()
    per = rows.law.parameters_per_dim
    numbers, b, d = theta.split([3 * per, 3, 2], -1)
    expected = rows.law.log_prob(x[:, [0, 2, 4]], numbers.reshape(4, 2, 3, per)).sum(-1)
    for logits, column in ((b, 1), (d, 3)):
        expected = expected + logits.log_softmax(-1).gather(-1, x[:, column].long().expand(4, -1)[..., None])[..., 0]
    torch.testing.assert_close(rows.log_prob(x, theta), expected)


@pytest.mark.parametrize("column", range(5))
def test_missing_values_are_marginalised(rows: RowLikelihood, column: int) -> None:
    theta = standard_normal((1, rows.outputs), 2).double().clamp(-1.5, 0.9)
    grid = (
        torch.linspace(-20, 20, 20_001) if TABLE.columns[column].numeric else torch.arange(len(TABLE.columns[column].categories))
    )
    x = torch.tensor([0.3, 2.0, -0.7, 1.0, 1.1]).repeat(len(grid), 1)
    x[:, column] = grid
    total = rows.log_prob(x, theta.expand(len(grid), -1)).exp().sum() * (0.002 if TABLE.columns[column].numeric else 1.0)
    x[:, column] = torch.nan
    assert float(rows.log_prob(x[:1], theta)) == pytest.approx(float(total.log()), abs=1e-8)


def test_missing_values_give_finite_gradients_and_do_not_train_their_column(rows: RowLikelihood) -> None:
    rows.requires_grad_(True)
    x = torch.full((1, 5), torch.nan)
    x[0, 2] = 0.4
    theta = standard_normal((1, rows.outputs), 3).double().requires_grad_()
    rows.log_prob(x, theta).sum().backward()
    assert theta.grad is not None and bool(theta.grad.isfinite().all())
    per = rows.law.parameters_per_dim
    moved = theta.grad[0].nonzero().flatten().tolist()
    assert set(moved) <= set(range(per, 2 * per)) and moved


def test_rows_are_drawn_column_by_column(rows: RowLikelihood) -> None:
    """For each column, the mean log-likelihood of its draws equals minus the entropy of its distribution."""
    n = 4_000
    theta = standard_normal((1, rows.outputs), 2).double().clamp(-1.5, 0.9).expand(n, -1)
    x = rows.sample(theta, standard_normal((n, rows.noise_size), 5).double())
    assert x.dtype == torch.float32 and bool(x.isfinite().all())
    for place, column in enumerate(TABLE.columns):
        grid = torch.linspace(-20, 20, 4_001) if column.numeric else torch.arange(len(column.categories))
        weight = 0.01 if column.numeric else 1.0
        alone = torch.full((len(grid), 5), torch.nan)
        alone[:, place] = grid
        log_prob = rows.log_prob(alone, theta[:1].expand(len(grid), -1))
        drawn = torch.full((n, 5), torch.nan)
        drawn[:, place] = x[:, place].double()
        surprise = rows.log_prob(drawn, theta)
        expected = weight * (log_prob.exp() * log_prob).sum()
        assert float(surprise.mean() - expected) == pytest.approx(0.0, abs=5 * float(surprise.std()) / n**0.5)


def test_a_table_of_categories_only_has_a_likelihood() -> None:
    rows = RowLikelihood("sigma_gaussian", CATEGORIES, mixtures=2)
    theta = standard_normal((1, rows.outputs), 1).double()
    every = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0))
    assert float(rows.log_prob(every, theta.expand(6, -1)).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert list(rows.parameters()) == [], "an empty parameter would never move"
    assert rows.sample(theta, torch.zeros(1, rows.noise_size)).shape == (1, 2)


def test_a_network_gets_numbers_one_hot_categories_and_missing_indicators() -> None:
    nan = torch.nan
    features = RowFeatures(MIXED)
    x = torch.tensor([[0.5, 2.0, -1.0, 1.0], [0.1, 0.0, nan, nan]])
    #       age  height  colour   smokes  height, smokes missing
    expected = torch.tensor(
        [
            [0.5, -1.0, 0, 0, 1, 0, 1, 0, 0],
            [0.1, 0.0, 1, 0, 0, 0, 0, 1, 1],
        ]
    )
    assert features.width == 9
    torch.testing.assert_close(features(x), expected)
