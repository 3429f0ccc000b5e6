"""The flow against exact oracles, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.contract import Batch, standard_normal
from remint.models.flow import Flow, build, partitions, phases
from remint.models.layers import normal_log_density
from remint.models.splines import parameter_count, rational_quadratic
from remint.records import Column, DataSpec
from remint.settings.recipe import FlowSettings
from tests.support.models_cases import CASES, IMAGE, PAIR, Case, every_example, examples

BOUND = 5.0


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


FLOWS = [name for name, case in CASES.items() if case.family == "flow"]


def a_flow(name: str, spec: DataSpec | None = None, **changes: float) -> Flow:
    model = CASES[name].build(spec, **changes)
    assert isinstance(model, Flow)
    return model.requires_grad_(False)


def dequantised(spec: DataSpec, x: Tensor, noise: Tensor) -> Tensor:
    """Return v: real numbers unchanged, discrete values at a random place within their level or interval."""
    v, u = x.flatten(1).clone(), torch.special.ndtr(noise)
    if not spec.is_table:
        return v + u
    place_Q = discrete_columns(spec)
    for column, place in enumerate(place_Q):
        scale = spec.columns[place].scale
        v[:, place] += (u[:, column] - 0.5) / scale if spec.columns[place].whole else u[:, column]
    return v


def discrete_columns(spec: DataSpec) -> list[int]:
    """Return the places of the discrete columns, in the order of their noise."""
    categorical = [place for place, column in enumerate(spec.columns) if not column.numeric]
    return categorical + [place for place, column in enumerate(spec.columns) if column.whole]


def random_theta(count: int, bins: int = 5) -> Tensor:
    return 2 * standard_normal((count, parameter_count(bins)), 3).double()


class TestSpline:
    def test_zero_parameters_are_the_identity(self) -> None:
        x = torch.linspace(-7, 7, 101)
        y, log_slope = rational_quadratic(x, torch.zeros(101, parameter_count(6)), BOUND)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros(101), rtol=0, atol=1e-12)

    def test_inverse_and_derivative_are_correct(self) -> None:
        x = torch.linspace(-6, 6, 400).requires_grad_()
        theta = random_theta(400)
        y, log_slope = rational_quadratic(x, theta, BOUND)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
        back, back_log_slope = rational_quadratic(y, theta, BOUND, inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
        torch.testing.assert_close(back_log_slope, -log_slope, rtol=0, atol=1e-8)

    def test_the_spline_is_increasing_and_continuous_at_its_tails(self) -> None:
        x = torch.linspace(-BOUND - 1, BOUND + 1, 5001)
        y, _ = rational_quadratic(x, random_theta(1).expand(5001, -1), BOUND)
        assert bool((y.diff() > 0).all())
        outside = x.abs() >= BOUND
        torch.testing.assert_close(y[outside], x[outside], rtol=0, atol=0)
        near = torch.tensor([-BOUND + 1e-9, BOUND - 1e-9])
        at_the_ends, slopes = rational_quadratic(near, random_theta(1).expand(2, -1), BOUND)
        torch.testing.assert_close(at_the_ends, near, rtol=0, atol=1e-8)
        torch.testing.assert_close(slopes, torch.zeros(2), rtol=0, atol=1e-4)

    def test_gradients_outside_the_interval_are_finite(self) -> None:
        theta = random_theta(2).requires_grad_()
        y, log_slope = rational_quadratic(torch.tensor([-50.0, 50.0]), theta, BOUND)
        (gradient,) = torch.autograd.grad((y + log_slope).sum(), theta)
        assert bool((gradient == 0).all())


class TestFlow:
    @pytest.mark.parametrize("name", FLOWS)
    def test_inverse_in_double_precision(self, name: str) -> None:
        case, model = CASES[name], a_flow(name)
        x, noise = examples(case.spec, 40).double(), standard_normal((40, model.density_noise), 4).double()
        base, _ = model.to_base(x, noise, case.y(40))
        back = model.from_base(base, case.y(40))
        torch.testing.assert_close(back, dequantised(case.spec, x, noise), rtol=0, atol=1e-10)
        assert torch.equal(model.entrance.to_example(back).view(x.shape).double(), x.float().double())

    @pytest.mark.parametrize("name", FLOWS)
    def test_inverse_in_single_precision(self, name: str) -> None:
        model = a_flow(name, spread=0.05).float()
        base = standard_normal((200, model.spec.dims), 5).float()
        y = CASES[name].y(200)
        classes = None if y is None else model.labels.one_hot(y, base.dtype)
        there, _ = model.bijections(base, classes, inverse=True)
        assert float((there - base).abs().max()) > 0.1
        torch.testing.assert_close(model.bijections(there, classes)[0], base, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", FLOWS)
    def test_the_log_determinant_equals_that_of_the_jacobian(self, name: str) -> None:
        case, model = CASES[name], a_flow(name)
        x, noise, y = examples(case.spec, 3).double(), standard_normal((3, model.density_noise), 6).double(), case.y(3)
        _, log_det = model.to_base(x, noise, y)
        discrete = discrete_columns(case.spec) if case.spec.is_table else list(range(case.spec.dims))
        for i in range(3):

            def base(row: Tensor, u: Tensor, i: int = i) -> Tensor:
                return model.to_base(row.view(1, *case.spec.shape), u[None], None if y is None else y[i : i + 1])[0][0]

            by_row, by_noise = torch.autograd.functional.jacobian(base, (x[i].flatten(), noise[i]))
            jacobian = by_row.clone()
            jacobian[:, discrete] = by_noise  # d base / d noise = d base / dv * dv / d noise, the latter the normal density
            expected = torch.linalg.slogdet(jacobian).logabsdet - normal_log_density(noise[i]).sum()
            torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-8)

    def test_the_density_integrates_to_one_and_matches_the_samples(self) -> None:
        model, side = a_flow("flow", PAIR, spread=0.3), torch.linspace(-7, 7, 101)
        noise = torch.cartesian_prod(side, side)
        # du = phi(noise) d noise; equal steps of the noise resolve the corners of a level, equal steps of u do not
        log_weight = normal_log_density(noise).sum(1) + 2 * math.log(0.14)
        mass = torch.stack(
            [(model.log_prob(x.expand(len(noise), -1, -1, -1), noise) + log_weight).exp().sum() for x in every_example(PAIR)]
        )
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-3)
        drawn = model.sample(standard_normal((40_000, PAIR.dims), 8).double()).flatten(1).long() @ torch.tensor([3, 1])
        share = torch.bincount(drawn, minlength=9) / 40_000
        assert float((share - mass).abs().sum()) < 0.02
        joint = mass.view(3, 3)
        independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        assert float((joint - independent).abs().max()) > 0.01  # the couplings have an effect

    def test_an_initial_flow_equals_the_factorised_model(self) -> None:
        x = examples(PAIR, 500)
        model = build(FlowSettings(), PAIR).eval()
        model.initialise(x)
        count = torch.stack([(x.flatten(1) == level).sum(0) for level in range(3)], dim=1) + 0.5
        log_share = (count / count.sum(1, keepdim=True)).log()
        new = every_example(PAIR)
        expected = sum(log_share[d].gather(0, new.flatten(1)[:, d].long()) for d in range(2))
        noise = standard_normal((9, 2), 9).double()
        torch.testing.assert_close(model.log_prob(new, noise).detach(), expected, rtol=0, atol=1e-9)

    def test_levels_that_training_never_saw_have_a_finite_likelihood(self) -> None:
        model = build(FlowSettings(), IMAGE).eval().requires_grad_(False)
        model.initialise(torch.zeros(1000, *IMAGE.shape, dtype=torch.uint8))
        never = torch.full((3, *IMAGE.shape), IMAGE.levels - 1, dtype=torch.uint8)
        noise = torch.tensor([-6.0, 0.0, 6.0]).unsqueeze(1).expand(3, IMAGE.dims)
        per_pixel = model.log_prob(never, noise) / IMAGE.dims
        torch.testing.assert_close(per_pixel, torch.full((3,), math.log(0.5 / 1008.5)), rtol=0, atol=1e-6)

    def test_extreme_noise_gives_valid_levels_and_likelihoods(self) -> None:
        model, noise = a_flow("flow"), torch.tensor([[-40.0], [40.0]]).expand(2, IMAGE.dims)
        x = model.sample(noise)
        assert bool(x[0].eq(0).all()) and bool(x[1].eq(IMAGE.levels - 1).all())
        assert bool(model.log_prob(x, noise).isfinite().all())

    def test_every_dimension_is_transformed_and_every_coupling_is_conditioned(self) -> None:
        for spec in (PAIR, IMAGE, DataSpec(shape=(3, 1, 1), levels=2)):
            parts = torch.stack(partitions(spec, 4))
            assert bool(parts.any(0).all()) and bool(parts.any(1).all()) and not bool(parts.all(1).any())


ONE = DataSpec(shape=(1,), columns=(Column(name="a"),), classes=3)
TWO = DataSpec(shape=(2,), columns=(Column(name="a"), Column(name="b")), classes=3)
BOTH = DataSpec(shape=(2,), columns=(Column(name="a"), Column(name="b", categories=("x", "y", "z"))), classes=3)


def nodes(settings: FlowSettings, end: float, count: int) -> tuple[Tensor, Tensor]:
    """Return points of a column and their weights: equal steps in the input of the flow."""
    side = torch.linspace(-end, end, count)
    step = 2 * end / (count - 1)
    return (side.sinh(), side.cosh() * step) if settings.tails == "asinh" else (side, torch.full_like(side, step))


class TestTables:
    @pytest.mark.parametrize(("coupling", "tails"), [("spline", "asinh"), ("spline", "linear"), ("affine", "asinh")])
    @pytest.mark.parametrize("conditional", [False, True])
    def test_the_density_of_one_column_integrates_to_one(self, coupling: str, tails: str, conditional: bool) -> None:
        settings = FlowSettings.model_validate({"coupling": coupling, "tails": tails, "conditional": conditional, "bins": 5})
        model = Case("flow", settings, ONE).build(spread=0.5).requires_grad_(False)
        assert isinstance(model, Flow)
        x, weight = nodes(settings, 15, 20_001)
        masses = []
        for label in range(3 if conditional else 1):
            y = torch.full((len(x),), label) if conditional else None
            masses.append(model.log_prob(x.unsqueeze(1), torch.zeros(len(x), 0), y).exp() * weight)
            assert float(masses[-1].sum()) == pytest.approx(1.0, abs=1e-3)
        assert not conditional or float((masses[0] - masses[1]).abs().sum()) > 0.05

    @pytest.mark.parametrize("changes", [{}, {"coupling": "affine", "tails": "linear"}, {"conditional": True}])
    def test_the_density_of_two_columns_integrates_to_one_and_matches_the_samples(self, changes: dict[str, Any]) -> None:
        settings = FlowSettings.model_validate({"couplings": 3, "hidden": 8, "bins": 5, "dropout": 0.0} | changes)
        model = Case("flow", settings, TWO).build(spread=0.2).requires_grad_(False)
        assert isinstance(model, Flow)
        side, weight = nodes(settings, 9, 361)
        x = torch.cartesian_prod(side, side)
        y = torch.full((len(x),), 2) if settings.conditional else None
        mass = model.log_prob(x, torch.zeros(len(x), 0), y).exp() * torch.cartesian_prod(weight, weight).prod(1)
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-3)
        noise = standard_normal((40_000, model.sample_noise), 8).double()
        drawn = model.sample(noise, torch.full((40_000,), 2) if settings.conditional else None).double()
        middle = side[190:192].mean()
        for column in range(2):  # distribution of one column, and of both, cut half-way between two nodes
            above = (x[:, : column + 1] > middle).all(1)
            share = (drawn[:, : column + 1] > middle).all(1).double().mean()
            assert float(share) == pytest.approx(float(mass[above].sum()), abs=0.01)

    def test_the_total_probability_of_numbers_and_categories_is_one(self) -> None:
        model = (
            Case("flow", FlowSettings(couplings=3, hidden=8, bins=5, dropout=0.0), BOTH).build(spread=0.3).requires_grad_(False)
        )
        assert isinstance(model, Flow) and model.density_noise == 1
        side, weight = nodes(FlowSettings(), 9, 361)
        number, noise = torch.cartesian_prod(side, torch.linspace(-7, 7, 141)).unbind(1)
        log_weight = normal_log_density(noise) + math.log(0.1) + weight.log().repeat_interleave(141)
        masses = []
        for place in range(3):
            x = torch.stack([number, torch.full_like(number, place)], dim=1)
            masses.append((model.log_prob(x, noise.unsqueeze(1)) + log_weight).exp().sum())
        assert float(sum(masses)) == pytest.approx(1.0, abs=1e-3)
        drawn = model.sample(standard_normal((40_000, 2), 8).double())
        assert drawn.dtype == torch.float32
        for place, mass in enumerate(masses):
            assert float((drawn[:, 1] == place).double().mean()) == pytest.approx(float(mass), abs=0.01)

    @pytest.mark.parametrize("name", ["flow-table", "flow-affine-table"])
    def test_extreme_noise_gives_finite_rows_with_finite_likelihood(self, name: str) -> None:
        case, model = CASES[name], a_flow(name)
        noise = torch.tensor([[-30.0], [30.0]]).expand(2, model.sample_noise)
        x = model.sample(noise, case.y(2))
        assert bool(x.isfinite().all())
        assert bool(model.log_prob(x, torch.zeros(2, model.density_noise), case.y(2)).isfinite().all())

    def test_a_convolutional_network_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="multiscale needs images"):
            build(FlowSettings(network="multiscale"), TWO)


@pytest.mark.parametrize("name", FLOWS)
def test_initialisation_is_a_function_of_the_training_split(name: str) -> None:
    case = CASES[name]
    states = []
    for seed in range(2):
        torch.manual_seed(0)
        model = build(case.settings.model_copy(update={"dropout": 0.5}), case.spec).double()
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        model.initialise(examples(case.spec, 50), case.y(50))
        assert model.training and torch.equal(torch.random.get_rng_state(), before)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_a_known_distribution_of_dependent_pixels_is_learnt_to_its_entropy() -> None:
    """Mean bits per dimension of all nine pairs under their true probabilities, against the entropy."""
    law = torch.tensor([[0.20, 0.10, 0.04], [0.05, 0.16, 0.09], [0.04, 0.10, 0.22]]).flatten()
    entropy = float(-(law * law.log2()).sum()) / 2
    drawn = every_example(PAIR)[torch.multinomial(law, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))]
    settings = FlowSettings(couplings=2, hidden=32, bins=16, bound=3.0, dropout=0.0)
    torch.manual_seed(0)
    model = build(settings, PAIR).double()
    model.initialise(drawn)
    (phase,) = phases(model, settings)
    optimizer = torch.optim.Adam(phase.parameters(), lr=1e-2)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)
        x = drawn[512 * (step % 39) :][:512]
        phase(Batch(x.double(), standard_normal((512, 2), step).double(), step / 500, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().requires_grad_(False)
    u = (torch.arange(50) + 0.5) / 50
    noise = torch.special.ndtri(torch.cartesian_prod(u, u))
    nats = torch.stack([model.log_prob(x.expand(len(noise), -1, -1, -1), noise).mean() for x in every_example(PAIR)])
    bits_per_dim = float(-(law * nats).sum()) / (2 * math.log(2))
    assert entropy < bits_per_dim < entropy + 0.01
    independent = -(law.view(3, 3) * (law.view(3, 3).sum(1, keepdim=True) * law.view(3, 3).sum(0)).log2()).sum() / 2
    assert bits_per_dim < float(independent) - 0.05
