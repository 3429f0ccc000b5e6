"""The GAN's losses, penalties and networks against their formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from remint.errors import SettingsError
from remint.models.adversarial import (
    CriticPhase,
    GeneratorPhase,
    critic_loss,
    generator_loss,
    lipschitz_penalty,
    relativistic,
    squared_gradients,
)
from remint.models.augment import Augment
from remint.models.contract import Batch, standard_normal
from remint.models.critics import Critic
from remint.models.gan import Generator, build, phases
from remint.models.labels import Labels
from remint.models.layers import to_levels, to_unit
from remint.records import Column, DataSpec
from remint.settings.recipe import GanSettings, Loss
from tests.support.models_cases import CASES, IMAGE, NUMBERS, examples, labels

SETTINGS = GanSettings(latent=3, hidden=8, layers=2, penalty=6.0, penalty_final=1.0, penalty_every=4)
LOSSES: list[Loss] = ["relativistic", "minimax", "non_saturating", "wgan_gp"]
SQUARE = DataSpec(shape=(1, 8, 8), levels=17, classes=3)
MIXED = DataSpec(
    shape=(3,), columns=(Column(name="a"), Column(name="b", categories=("x", "y", "z")), Column(name="c", categories=("u", "v")))
)


class Quadratic(nn.Module):
    """Critic D(x) = x' A x / 2 + b' x, with gradient A x + b for symmetric A."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims
        self.A = nn.Parameter(half + half.T)
        self.b = nn.Parameter(torch.randn(dims, generator=generator, dtype=torch.float64))

    def forward(self, x_BS: Tensor, y_B: Tensor | None = None) -> Tensor:
        x_BD = x_BS.flatten(1)
        return 0.5 * torch.einsum("bi,ij,bj->b", x_BD, self.A, x_BD) + x_BD @ self.b

    def squared_gradient(self, x_BS: Tensor) -> Tensor:
        return (x_BS.flatten(1) @ self.A + self.b).square().sum(1).mean()


@pytest.fixture
def generator() -> Generator:
    model = CASES["gan"].build(IMAGE)
    assert isinstance(model, Generator)
    return model


def a_batch(noise_size: int, step: int, progress: float = 0.0) -> Batch:
    noise = standard_normal((5, noise_size), step).double()
    return Batch(examples(IMAGE, 5).double(), noise, progress=progress, step=step, y_B=labels(IMAGE, 5))


def critic_phase(critic: nn.Module, generator: Generator, **update: object) -> CriticPhase:
    settings = SETTINGS.model_copy(update=update)
    return CriticPhase(critic, generator, Augment(settings, IMAGE), settings)


def real_and_fake(generator: Generator, batch: Batch) -> tuple[Tensor, Tensor]:
    return to_unit(batch.x_BX, IMAGE.levels), generator(batch.noise_BN[:, : generator.sample_noise]).detach()


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


FORMULAS = {  # for one real and one fake score, as in the papers
    "relativistic": (lambda r, f: -math.log(sigmoid(r - f)), lambda r, f: -math.log(sigmoid(f - r))),
    "minimax": (lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)), lambda r, f: math.log(1 - sigmoid(f))),
    "non_saturating": (lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)), lambda r, f: -math.log(sigmoid(f))),
    "wgan_gp": (lambda r, f: f - r, lambda r, f: -f),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_equal_their_formulas(loss: Loss) -> None:
    real = torch.tensor([0.3, -2.0, 3.0, -8.0], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([0.1, 1.5, -4.0, 10.0], dtype=torch.float64, requires_grad=True)
    of_critic, of_generator = FORMULAS[loss]
    pairs = list(zip(real.tolist(), fake.tolist(), strict=True))
    assert critic_loss(loss, real, fake).item() == pytest.approx(sum(of_critic(r, f) for r, f in pairs) / 4, rel=1e-10)
    assert generator_loss(loss, real, fake).item() == pytest.approx(sum(of_generator(r, f) for r, f in pairs) / 4, rel=1e-10)
    assert torch.autograd.gradcheck(lambda r, f: critic_loss(loss, r, f), (real, fake))
    assert torch.autograd.gradcheck(lambda f: generator_loss(loss, real.detach(), f), (fake,))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_finite_if_the_critic_is_certain(loss: Loss) -> None:
    real, fake = torch.tensor([800.0]), torch.tensor([-800.0])
    assert all(bool(each.isfinite()) for each in (critic_loss(loss, real, fake), generator_loss(loss, real, fake)))
    assert relativistic(fake, real).item() == 1600.0


def test_the_non_saturating_loss_trains_where_the_saturating_loss_does_not() -> None:
    fake = torch.tensor([-30.0], dtype=torch.float64, requires_grad=True)
    slopes = {loss: torch.autograd.grad(generator_loss(loss, None, fake), fake)[0].item() for loss in LOSSES[1:3]}
    assert slopes["minimax"] == pytest.approx(-math.exp(-30.0), rel=1e-9)
    assert slopes["non_saturating"] == pytest.approx(-1.0, rel=1e-9)


def test_the_penalty_of_a_quadratic_critic_equals_its_closed_form_and_trains_the_critic() -> None:
    critic, x = Quadratic(4), torch.randn(7, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty, expected = squared_gradients(critic(x), x).mean(), critic.squared_gradient(x)
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(penalty, [critic.b], retain_graph=True)
    wanted = torch.autograd.grad(expected, [critic.b])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_the_lipschitz_penalty_of_a_linear_critic_equals_its_closed_form() -> None:
    weight = torch.tensor([0.6, -1.2, 0.4], dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    penalty = lipschitz_penalty(x @ weight, x)
    norm = weight.detach().norm()
    torch.testing.assert_close(penalty, (norm - 1).square(), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, 2 * (norm - 1) * weight.detach() / norm, rtol=1e-12, atol=0)
    flat = (x * 0.0).sum(1)
    assert lipschitz_penalty(flat, x).item() == 1.0


@pytest.mark.parametrize(("step", "progress", "weight"), [(0, 0.0, 6.0), (8, 0.35, 3.5), (12, 0.7, 1.0), (16, 0.99, 1.0)])
@pytest.mark.parametrize("loss", LOSSES[:3])
def test_the_critic_loss_includes_its_lazy_penalties(
    generator: Generator, loss: Loss, step: int, progress: float, weight: float
) -> None:
    critic = Quadratic(IMAGE.dims)
    phase = critic_phase(critic, generator, loss=loss)
    batch = a_batch(phase.noise_size, step, progress)
    real, fake = real_and_fake(generator, batch)
    r1, r2 = critic.squared_gradient(real), critic.squared_gradient(fake)
    expected = critic_loss(loss, critic(real), critic(fake)) + 4 * weight / 2 * (r1 + r2)
    torch.testing.assert_close(phase(batch), expected, rtol=1e-12, atol=0)
    assert phase.curves() == pytest.approx({"r1": r1.item(), "r2": r2.item()})


def test_wgan_gp_is_penalised_between_real_and_drawn_examples(generator: Generator) -> None:
    critic = Quadratic(IMAGE.dims)
    phase = critic_phase(critic, generator, loss="wgan_gp")
    assert phase.noise_size == generator.sample_noise + 1
    batch = a_batch(phase.noise_size, step=4)
    real, fake = real_and_fake(generator, batch)
    u = torch.special.ndtr(batch.noise_BN[:, -1]).view(-1, 1, 1, 1)
    between = (u * real + (1 - u) * fake).flatten(1)
    slopes = (between @ critic.A + critic.b).norm(dim=1)
    expected = critic(fake).mean() - critic(real).mean() + 4 * 6.0 * (slopes - 1).square().mean()
    torch.testing.assert_close(phase(batch), expected, rtol=1e-12, atol=0)
    assert set(phase.curves()) == {"lipschitz"}


@pytest.mark.parametrize(("step", "update"), [(3, {}), (4, {"penalty": 0.0, "penalty_final": 0.0})])
@pytest.mark.parametrize("loss", LOSSES)
def test_there_is_no_penalty_between_lazy_steps_or_with_weight_0(
    generator: Generator, loss: Loss, step: int, update: dict[str, float]
) -> None:
    critic = Quadratic(IMAGE.dims)
    phase = critic_phase(critic, generator, loss=loss, **update)
    batch = a_batch(phase.noise_size, step)
    real, fake = real_and_fake(generator, batch)
    torch.testing.assert_close(phase(batch), critic_loss(loss, critic(real), critic(fake)), rtol=1e-12, atol=0)
    assert phase.curves() == {}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generator_phase_descends_its_loss_on_the_same_critic(generator: Generator, loss: Loss) -> None:
    critic = Critic(SETTINGS, generator.space, generator.labels).double()
    batch = a_batch(generator.sample_noise, step=1)
    expected = generator_loss(loss, critic(to_unit(batch.x_BX, IMAGE.levels)), critic(generator(batch.noise_BN)))
    settings = SETTINGS.model_copy(update={"loss": loss})
    phase = GeneratorPhase(generator, critic, Augment(settings, IMAGE), settings)
    torch.testing.assert_close(phase(batch), expected, rtol=1e-12, atol=0)


def test_betas_are_a_function_of_progress(generator: Generator) -> None:
    settings = SETTINGS.model_copy(update={"beta1": 0.5, "beta2": 0.9, "beta2_final": 0.97})
    for phase in phases(generator, settings):
        found = []
        for progress in (0.0, 0.35, 0.7, 0.99, 0.0):
            phase.schedule(progress)
            found.append(phase.betas)
        assert found == [pytest.approx(pair) for pair in [(0.5, 0.9), (0.5, 0.935), (0.5, 0.97), (0.5, 0.97), (0.5, 0.9)]]
    assert [phase.betas for phase in phases(generator, SETTINGS)] == [(0.0, 0.99)] * 2


def test_penalties_are_computed_in_single_precision_under_autocast(generator: Generator) -> None:
    phase = phases(generator.float(), SETTINGS)[0]
    batch = a_batch(phase.noise_size, step=0)
    batch.x_BX, batch.noise_BN = batch.x_BX.float(), batch.noise_BN.float()
    phase(batch)
    full = phase.curves()
    with torch.autocast("cpu", torch.bfloat16):
        phase(batch)
    assert phase.curves()["r1"] == full["r1"]  # bit-identical for real examples; drawn ones are rounded


def test_each_phase_trains_only_its_network(generator: Generator) -> None:
    first, second = (phase.double() for phase in phases(generator, SETTINGS))
    assert isinstance(first, CriticPhase) and isinstance(second, GeneratorPhase)
    assert second.critic is first.critic and first.generator is second.generator is generator
    first(a_batch(first.noise_size, step=0)).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for name, p in first.named_parameters() if name != "critic.net.4.bias")
    first.requires_grad_(False).zero_grad()
    second(a_batch(second.noise_size, step=0)).backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in generator.parameters())


def test_only_the_generator_is_served(generator: Generator) -> None:
    before = set(generator.state_dict())
    phases(generator, SETTINGS)
    assert set(generator.state_dict()) == before


@pytest.mark.parametrize("network", ["mlp", "residual_mlp", "dcgan", "residual"])
@pytest.mark.parametrize("conditional", [False, True])
def test_generator_and_critic_treat_each_example_independently(network: str, conditional: bool) -> None:
    torch.manual_seed(0)
    settings = GanSettings.model_validate(
        {"network": network, "conditional": conditional, "latent": 3, "hidden": 8, "width": 4, "layers": 2, "dilation": 2}
    )
    model = build(settings, SQUARE).double()
    critic = Critic(settings, model.space, model.labels).double()
    noise, y = standard_normal((6, model.sample_noise), 1).double(), labels(SQUARE, 6)
    with torch.no_grad():
        for parameter in (*model.parameters(), *critic.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
        fake = model(noise, y)
        score = critic(fake, y)
        assert fake.shape == (6, 1, 8, 8) and score.shape == (6,) and bool((fake.abs() <= 1).all())
        torch.testing.assert_close(critic(fake[2:3], y[2:3]), score[2:3], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(noise[2:3], y[2:3]), fake[2:3], rtol=1e-10, atol=1e-10)
        other = (y + 1) % 3
        assert torch.equal(model(noise, other), fake) is not conditional
        assert torch.equal(critic(fake, other), score) is not conditional


def test_a_conditional_critic_is_a_projection() -> None:
    """The score of an example and a class is the first output plus one output of that class; nothing else uses the class."""
    settings = SETTINGS.model_copy(update={"conditional": True})
    model = build(settings, SQUARE).double()
    critic = Critic(settings, model.space, Labels(True, SQUARE)).double()
    x = to_unit(examples(SQUARE, 1).double(), SQUARE.levels)
    out = critic.net(x.flatten(1))[0]
    scores = torch.stack([critic(x, torch.tensor([y]))[0] for y in range(3)])
    torch.testing.assert_close(scores, out[0] + out[1:], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("update", "spec", "message"),
    [
        ({"network": "residual"}, NUMBERS, "residual needs images, but this dataset is a table"),
        ({"network": "dcgan"}, IMAGE, "dcgan halves its maps, but 3 x 4 cannot be"),
        ({"fourier": 4}, SQUARE, "fourier needs a table"),
        ({"conditional": True}, MIXED, "conditional: true needs labels"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(update: dict[str, object], spec: DataSpec, message: str) -> None:
    settings = SETTINGS.model_copy(update=update)
    with pytest.raises(SettingsError, match=message):
        phases(build(settings, spec), settings)


def test_fourier_features_are_fixed_by_the_initial_seed_and_make_a_critic_steep() -> None:
    settings = SETTINGS.model_copy(update={"fourier": 4, "fourier_scale": 50.0})
    model = build(settings, NUMBERS)
    critics = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        critics.append(Critic(settings, model.space, model.labels))
    same, again, other = (critic.frequencies_DW for critic in critics)
    assert torch.equal(same, again) and not torch.equal(same, other)
    assert not critics[0].frequencies_DW.requires_grad and "frequencies_DW" in critics[0].state_dict()
    x = torch.zeros(1, 3, requires_grad=True)
    plain = Critic(SETTINGS, model.space, model.labels)
    assert squared_gradients(critics[0](x), x) > 100 * squared_gradients(plain(x), x)


def test_categories_are_drawn_with_the_probabilities_of_the_logits() -> None:
    model = build(SETTINGS, MIXED).double()
    last = model.net[0][-1]  # type: ignore[index]
    logits = torch.tensor([0.7, math.log(0.5), math.log(0.3), math.log(0.2), math.log(0.9), math.log(0.1)])
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(logits)
        x = model.sample(standard_normal((20_000, model.sample_noise), 3).double())
    assert x.dtype == torch.float32 and x.shape == (20_000, 3)
    assert torch.equal(x[:, 0], torch.full((20_000,), 0.7))
    for column, shares in ((1, [0.5, 0.3, 0.2]), (2, [0.9, 0.1])):
        found = torch.bincount(x[:, column].long(), minlength=len(shares)) / 20_000
        assert found.tolist() == pytest.approx(shares, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_critic_gets_one_hot_rows_and_differentiable_samples() -> None:
    space = build(SETTINGS, MIXED).space
    rows = torch.tensor([[0.5, 2.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    seen = space.encode(rows)
    assert seen.tolist() == [[0.5, 0, 0, 1, 1, 0], [-1.0, 1, 0, 0, 0, 1]]
    assert torch.equal(space.decode(seen), rows.float())
    out = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 5, dtype=torch.float64)
    drawn = space.from_network(out, noise)
    torch.testing.assert_close(drawn[:, 1:4].sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(drawn[:, 4:].sum(1), torch.ones(2, dtype=torch.float64))
    assert torch.equal(space.decode(space.encode(space.decode(drawn).double())), space.decode(drawn))
    assert torch.autograd.gradcheck(lambda o: space.from_network(o, noise), (out,))
    assert bool(space.from_network(out, torch.full_like(noise, 40.0)).isfinite().all())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_scaling_and_its_inverse(levels: int) -> None:
    x = torch.arange(levels)
    unit = to_unit(x, levels)
    assert float(unit[0]) == -1.0 and float(unit[-1]) == 1.0
    assert torch.equal(to_levels(unit, levels).long(), x)
    assert to_levels(torch.tensor([-3.0, 3.0]), levels).tolist() == [0, levels - 1]


@pytest.mark.slow
def test_a_table_is_learnt_with_its_categories_and_classes() -> None:
    """The class determines one number, a category with shares .75 and .25 the other: samples reproduce both."""
    spec = DataSpec(shape=(3,), columns=(*MIXED.columns[:1], MIXED.columns[2], Column(name="d")), classes=2)
    settings = GanSettings(latent=4, hidden=32, layers=2, conditional=True, penalty=1.0, penalty_final=0.1, beta2=0.9)
    torch.manual_seed(0)
    model = build(settings, spec)
    sides = phases(model, settings)
    optimizers = [torch.optim.AdamW(phase.parameters(), lr=5e-3, betas=phase.betas, fused=True) for phase in sides]
    for step in range(300):
        numbers = standard_normal((64, 2), step)
        y, category = labels(spec, 64, step), (numbers[:, 0] > 0.6745).float()
        assert y is not None
        x = torch.stack([2.0 * y - 1 + 0.2 * numbers[:, 1], category, 1 - 2 * category + 0.2 * numbers[:, 1]], dim=1)
        for index, (phase, optimizer) in enumerate(zip(sides, optimizers, strict=True)):
            optimizer.zero_grad()
            phase(Batch(x, standard_normal((64, phase.noise_size), step, index), step / 300, step, y)).backward()
            optimizer.step()
    with torch.no_grad():
        y = labels(spec, 2000)
        assert y is not None
        drawn = model.sample(standard_normal((2000, model.sample_noise), "drawn"), y)
    number, category, other = drawn.unbind(1)
    assert float(((number > 0) == (y == 1)).float().mean()) > 0.95
    assert float(((other < 0) == (category == 1)).float().mean()) > 0.9
    assert float(category.mean()) == pytest.approx(0.25, abs=0.1)
