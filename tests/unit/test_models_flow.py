"""The flow against exact oracles, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from remint.models.contract import standard_normal
from remint.models.flow import Flow, build, partitions
from remint.models.layers import normal_log_density
from remint.models.splines import parameters, rational_quadratic
from remint.recipe import FlowSettings
from remint.records import DataSpec
from tests.models_cases import CASES, IMAGE, PAIR, every_example, examples

BOUND = 5.0


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def a_flow(spec: DataSpec, **changes: float) -> Flow:
    model = CASES["flow"].build(spec, **changes)
    assert isinstance(model, Flow)
    return model.requires_grad_(False)


def random_theta(count: int, bins: int = 5) -> Tensor:
    return 2 * standard_normal((count, parameters(bins)), 3).double()


class TestSpline:
    def test_zero_parameters_are_the_identity(self) -> None:
        x = torch.linspace(-7, 7, 101)
        y, log_slope = rational_quadratic(x, torch.zeros(101, parameters(6)), BOUND)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros(101), rtol=0, atol=1e-12)

    def test_inverse_and_slope(self) -> None:
        x = torch.linspace(-6, 6, 400).requires_grad_()
        theta = random_theta(400)
        y, log_slope = rational_quadratic(x, theta, BOUND)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
        back, back_log_slope = rational_quadratic(y, theta, BOUND, inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
        torch.testing.assert_close(back_log_slope, -log_slope, rtol=0, atol=1e-8)

    def test_rises_everywhere_and_joins_its_tails(self) -> None:
        x = torch.linspace(-BOUND - 1, BOUND + 1, 5001)
        y, _ = rational_quadratic(x, random_theta(1).expand(5001, -1), BOUND)
        assert bool((y.diff() > 0).all())
        outside = x.abs() >= BOUND
        torch.testing.assert_close(y[outside], x[outside], rtol=0, atol=0)
        near = torch.tensor([-BOUND + 1e-9, BOUND - 1e-9])
        at_the_ends, slopes = rational_quadratic(near, random_theta(1).expand(2, -1), BOUND)
        torch.testing.assert_close(at_the_ends, near, rtol=0, atol=1e-8)
        torch.testing.assert_close(slopes, torch.zeros(2), rtol=0, atol=1e-4)

    def test_gradients_outside_are_finite(self) -> None:
        theta = random_theta(2).requires_grad_()
        y, log_slope = rational_quadratic(torch.tensor([-50.0, 50.0]), theta, BOUND)
        (gradient,) = torch.autograd.grad((y + log_slope).sum(), theta)
        assert bool((gradient == 0).all())


class TestFlow:
    def test_round_trip_in_double_precision(self) -> None:
        model, x = a_flow(IMAGE), examples(IMAGE, 40)
        noise = standard_normal((40, IMAGE.dims), 4).double()
        z, _ = model.to_base(x, noise)
        torch.testing.assert_close(model.from_base(z), x.flatten(1) + torch.special.ndtr(noise), rtol=0, atol=1e-10)

    def test_couplings_round_trip_in_single_precision(self) -> None:
        model = a_flow(IMAGE, spread=0.1).float()
        z = there = standard_normal((200, IMAGE.dims), 5).float()
        there, _ = model.bijections(there)
        assert float((there - z).abs().max()) > 0.1
        there, _ = model.bijections(there, inverse=True)
        torch.testing.assert_close(there, z, rtol=0, atol=1e-5)

    def test_log_determinant_is_that_of_the_jacobian(self) -> None:
        model, x = a_flow(IMAGE), examples(IMAGE, 3)
        noise = standard_normal((3, IMAGE.dims), 6).double()
        _, log_det = model.to_base(x, noise)
        for i in range(3):
            jacobian = torch.autograd.functional.jacobian(lambda n, i=i: model.to_base(x[i : i + 1], n)[0][0], noise[i : i + 1])
            # dz / d noise = dz / dv * dv / d noise, and dv / d noise is the normal density
            expected = torch.linalg.slogdet(jacobian[:, 0]).logabsdet - normal_log_density(noise[i]).sum()
            torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-8)

    def test_density_integrates_to_one_and_is_that_of_the_samples(self) -> None:
        model, side = a_flow(PAIR, spread=0.3), torch.linspace(-7, 7, 101)
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
        assert float((joint - independent).abs().max()) > 0.01  # the couplings took part

    def test_starts_as_the_factorised_model(self) -> None:
        x = examples(PAIR, 500)
        model = build(FlowSettings(), PAIR).eval()
        model.initialise(x)
        count = torch.stack([(x.flatten(1) == level).sum(0) for level in range(3)], dim=1) + 0.5
        log_share = (count / count.sum(1, keepdim=True)).log()
        new = every_example(PAIR)
        expected = sum(log_share[d].gather(0, new.flatten(1)[:, d].long()) for d in range(2))
        noise = standard_normal((9, 2), 9).double()
        torch.testing.assert_close(model.log_prob(new, noise).detach(), expected, rtol=0, atol=1e-9)

    def test_what_training_never_saw_has_a_likelihood(self) -> None:
        model = build(FlowSettings(), IMAGE).eval().requires_grad_(False)
        model.initialise(torch.zeros(1000, *IMAGE.shape, dtype=torch.uint8))
        never = torch.full((3, *IMAGE.shape), IMAGE.levels - 1, dtype=torch.uint8)
        noise = torch.tensor([-6.0, 0.0, 6.0]).unsqueeze(1).expand(3, IMAGE.dims)
        per_pixel = model.log_prob(never, noise) / IMAGE.dims
        torch.testing.assert_close(per_pixel, torch.full((3,), math.log(0.5 / 1008.5)), rtol=0, atol=1e-6)

    def test_far_noise_gives_levels_and_likelihoods(self) -> None:
        model, noise = a_flow(IMAGE), torch.tensor([[-40.0], [40.0]]).expand(2, IMAGE.dims)
        x = model.sample(noise)
        assert bool(x[0].eq(0).all()) and bool(x[1].eq(IMAGE.levels - 1).all())
        assert bool(model.log_prob(x, noise).isfinite().all())

    def test_every_dimension_is_moved_and_every_coupling_is_conditioned(self) -> None:
        for spec in (PAIR, IMAGE, DataSpec(shape=(3, 1, 1), levels=2)):
            parts = torch.stack(partitions(spec, 4))
            assert bool(parts.any(0).all()) and bool(parts.any(1).all()) and not bool(parts.all(1).any())
