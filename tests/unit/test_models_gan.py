"""The GAN's losses and penalties against their formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from remint.models.contract import Batch
from remint.models.gan import Critic, CriticPhase, Generator, GeneratorPhase, gradient_penalty, phases, relativistic
from remint.models.layers import to_levels, to_unit
from remint.recipe import GanSettings
from tests.models_cases import CASES, IMAGE, examples

SETTINGS = GanSettings(latent=3, hidden=8, layers=2, penalty=6.0, penalty_final=1.0, penalty_every=4)


class Quadratic(nn.Module):
    """D(x) = x' A x / 2 + b' x, whose gradient is A x + b for symmetric A."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims
        self.A = nn.Parameter(half + half.T)
        self.b = nn.Parameter(torch.randn(dims, generator=generator, dtype=torch.float64))

    def forward(self, x_BD: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,ij,bj->b", x_BD, self.A, x_BD) + x_BD @ self.b

    def squared_gradient(self, x_BD: Tensor) -> Tensor:
        return (x_BD @ self.A + self.b).square().sum(1).mean()


@pytest.fixture
def generator() -> Generator:
    model = CASES["gan"].build(IMAGE)
    assert isinstance(model, Generator)
    return model


def a_batch(generator: Generator, step: int, progress: float = 0.0) -> Batch:
    noise = torch.randn(5, generator.sample_noise, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return Batch(examples(IMAGE, 5).double(), noise, progress=progress, step=step)


def test_relativistic_loss_is_its_formula_and_its_gradient() -> None:
    real = torch.tensor([0.3, -2.0, 30.0, -800.0], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([0.1, 1.5, -4.0, 100.0], dtype=torch.float64, requires_grad=True)
    loss = relativistic(real, fake)
    expected = [math.log1p(math.exp(-0.2)), math.log1p(math.exp(3.5)), math.exp(-34.0), 900.0]
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-12)
    assert torch.autograd.gradcheck(relativistic, (real, fake))


def test_penalty_on_a_quadratic_critic_is_its_closed_form_and_trains_the_critic() -> None:
    critic, x = Quadratic(4), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    penalty, expected = gradient_penalty(critic(x), x), critic.squared_gradient(x)
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(penalty, [critic.b], retain_graph=True)
    wanted = torch.autograd.grad(expected, [critic.b])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("step", "progress", "weight"), [(0, 0.0, 6.0), (8, 0.35, 3.5), (12, 0.7, 1.0), (16, 0.99, 1.0)])
def test_critic_loss_with_its_lazy_penalties(generator: Generator, step: int, progress: float, weight: float) -> None:
    critic = Quadratic(IMAGE.dims)
    phase = CriticPhase(critic, generator, SETTINGS)  # type: ignore[arg-type]
    batch = a_batch(generator, step, progress)
    real, fake = to_unit(batch.x_BX.flatten(1), IMAGE.levels), generator(batch.noise_BN).detach()
    r1, r2 = critic.squared_gradient(real), critic.squared_gradient(fake)
    expected = relativistic(critic(real), critic(fake)) + 4 * weight / 2 * (r1 + r2)
    torch.testing.assert_close(phase(batch), expected, rtol=1e-12, atol=0)
    assert phase.curves() == pytest.approx({"r1": r1.item(), "r2": r2.item()})


def test_no_penalty_between_the_lazy_steps(generator: Generator) -> None:
    critic = Quadratic(IMAGE.dims)
    phase = CriticPhase(critic, generator, SETTINGS)  # type: ignore[arg-type]
    batch = a_batch(generator, step=3)
    real, fake = to_unit(batch.x_BX.flatten(1), IMAGE.levels), generator(batch.noise_BN)
    torch.testing.assert_close(phase(batch), relativistic(critic(real), critic(fake)), rtol=1e-12, atol=0)
    assert phase.curves() == {}


def test_generator_loss_is_the_critics_with_the_roles_exchanged(generator: Generator) -> None:
    critic = Critic(SETTINGS, IMAGE).double()
    batch = a_batch(generator, step=1)
    real, fake = critic(to_unit(batch.x_BX.flatten(1), IMAGE.levels)), critic(generator(batch.noise_BN))
    loss = GeneratorPhase(generator, critic)(batch)
    torch.testing.assert_close(loss, relativistic(fake, real), rtol=1e-12, atol=0)


def test_each_phase_reaches_its_own_side_only(generator: Generator) -> None:
    critic_phase, generator_phase = (phase.double() for phase in phases(generator, SETTINGS))
    assert isinstance(critic_phase, CriticPhase) and isinstance(generator_phase, GeneratorPhase)
    assert generator_phase.critic is critic_phase.critic and critic_phase.generator is generator_phase.generator is generator
    critic_phase(a_batch(generator, step=0)).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for name, p in critic_phase.named_parameters() if name != "critic.net.4.bias")
    critic_phase.requires_grad_(False).zero_grad()
    generator_phase(a_batch(generator, step=0)).backward()
    assert all(p.grad is None for p in critic_phase.parameters())
    assert all(p.grad is not None for p in generator.parameters())


def test_only_the_generator_is_served(generator: Generator) -> None:
    before = set(generator.state_dict())
    phases(generator, SETTINGS)
    assert set(generator.state_dict()) == before


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_there_and_back(levels: int) -> None:
    x = torch.arange(levels)
    unit = to_unit(x, levels)
    assert float(unit[0]) == -1.0 and float(unit[-1]) == 1.0
    assert torch.equal(to_levels(unit, levels).long(), x)
    assert to_levels(torch.tensor([-3.0, 3.0]), levels).tolist() == [0, levels - 1]
