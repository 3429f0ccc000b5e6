"""The VAE and its likelihoods against exact oracles, in float64.

With one latent and two pixels of three levels everything can be integrated: log p(x) on a grid of z, means over
the noise on a grid of noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from remint.models.contract import Batch, standard_normal
from remint.models.layers import normal_log_density
from remint.models.likelihoods import Categorical, DiscretisedLogistic, LevelLikelihood
from remint.models.vae import Elbo, Vae
from remint.recipe import VaeSettings
from tests.models_cases import CASES, IMAGE, PAIR, Case, every_example

GRID = torch.linspace(-9, 9, 1801, dtype=torch.float64)  # trapezoidal weights are equal: the integrands vanish at the ends
LOG_WEIGHT = normal_log_density(GRID) + math.log(0.01)
BITS = PAIR.dims * math.log(2)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["vae", "vae-categorical"])
def vae(request: pytest.FixtureRequest) -> Vae:
    model = CASES[request.param].build(PAIR, seed=2, spread=0.5)
    assert isinstance(model, Vae)
    return model.requires_grad_(False)


def exact_log_prob(vae: Vae, x: Tensor) -> Tensor:
    """log of the integral of p(x | z) N(z) over z, shape (B,)."""
    z = GRID.view(-1, 1, 1).expand(-1, len(x), 1)
    return torch.logsumexp(vae.log_likelihood(x, z) + LOG_WEIGHT[:, None], 0)


def elbo_on_grid(vae: Vae, x: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) at every noise of the grid, shape (grid, B)."""
    return vae.elbo(x, GRID.view(-1, 1, 1).expand(-1, len(x), 1))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", ["categorical", "plain", "mixture"])
def test_probabilities_of_all_levels_sum_to_one(kind: str, levels: int) -> None:
    kinds: dict[str, LevelLikelihood] = {
        "categorical": Categorical(levels),
        "plain": DiscretisedLogistic(levels, 1),
        "mixture": DiscretisedLogistic(levels, 4),
    }
    theta = 4 * standard_normal((100, kinds[kind].parameters_per_dim), 1).double().expand(levels, -1, -1)
    log_prob = kinds[kind].log_prob(torch.arange(levels).unsqueeze(1).expand(-1, 100), theta)
    assert bool((log_prob <= 0).all())
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(100), rtol=0, atol=1e-12)


def test_discretised_logistic_is_the_difference_of_its_distribution_function() -> None:
    theta = torch.tensor([0.3, -0.4, 0.2, -0.6, -1.0, -0.5])  # two logits, two means, two log scales
    edge = (torch.arange(5) + 0.5) * 2 / 4 - 1
    share = theta[:2].softmax(0)
    cdf = torch.stack([share[m] * torch.sigmoid((edge - theta[2 + m]) / theta[4 + m].exp()) for m in range(2)]).sum(0)
    cdf[-1] = 1.0
    expected = torch.diff(cdf, prepend=torch.zeros(1))
    log_prob = DiscretisedLogistic(5, 2).log_prob(torch.arange(5), theta.expand(5, -1))
    torch.testing.assert_close(log_prob.exp(), expected, rtol=0, atol=1e-12)


def test_an_impossible_level_keeps_a_finite_likelihood_and_gradient_in_single_precision() -> None:
    theta = torch.tensor([[0.0, -1.0, -7.0], [0.0, 1.0, -7.0]], dtype=torch.float32, requires_grad=True)
    log_prob = DiscretisedLogistic(256, 1).log_prob(torch.tensor([200, 3]), theta)
    (gradient,) = torch.autograd.grad(log_prob.sum(), theta)
    assert bool(log_prob.isfinite().all()) and bool(gradient.isfinite().all())


def test_categorical_draws_have_its_probabilities() -> None:
    n, theta = 10_000, 2 * standard_normal((1, 1, 5), 2).double()
    noise = torch.special.ndtri((torch.arange(n) + 0.5) / n).unsqueeze(1)
    drawn = Categorical(5).sample(theta.expand(n, -1, -1), noise)
    share = torch.bincount(drawn.flatten().long(), minlength=5) / n
    torch.testing.assert_close(share, theta.flatten().softmax(0), rtol=0, atol=1.01 / n)


def test_logistic_draws_have_its_probabilities() -> None:
    side, law = 400, DiscretisedLogistic(7, 3)
    theta = standard_normal((1, 1, law.parameters_per_dim), 3).double()
    u = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    noise = torch.cartesian_prod(u, u)
    drawn = law.sample(theta.expand(len(noise), -1, -1), noise)
    share = torch.bincount(drawn.flatten().long(), minlength=7) / len(noise)
    exact = law.log_prob(torch.arange(7), theta[0].expand(7, -1)).exp()
    torch.testing.assert_close(share, exact, rtol=0, atol=3 / side)


def test_marginal_probabilities_sum_to_one_and_are_those_of_the_samples(vae: Vae) -> None:
    mass = exact_log_prob(vae, every_example(PAIR)).exp()
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-9)
    drawn = vae.sample(standard_normal((40_000, vae.sample_noise), 4).double()).flatten(1).long() @ torch.tensor([3, 1])
    assert float((torch.bincount(drawn, minlength=9) / 40_000 - mass).abs().sum()) < 0.025


@pytest.mark.parametrize("likelihood", ["categorical", "discretised_logistic"])
def test_likeliest_levels(likelihood: str) -> None:
    settings = VaeSettings.model_validate({"latent": 1, "hidden": 8, "likelihood": likelihood, "pixels": "mode"})
    model = Case("vae", settings).build(IMAGE, spread=0.5)
    assert isinstance(model, Vae) and model.sample_noise == 1
    z = torch.linspace(-3, 3, 20).unsqueeze(1)
    with torch.no_grad():
        x = model.sample(z)
        shown = model.log_likelihood(x, z)
        for pixel in range(IMAGE.dims):
            for level in range(IMAGE.levels):
                other = x.flatten(1).clone()
                other[:, pixel] = level
                assert bool((model.log_likelihood(other, z) <= shown + 1e-12).all())
    assert len(x.unique(dim=0)) > 1


def test_mean_importance_weight_is_the_marginal_probability(vae: Vae) -> None:
    """E exp(elbo) = p(x) exactly: a constant that was dropped anywhere would show."""
    x = every_example(PAIR)
    wide = torch.linspace(-80, 80, 16_001)  # importance weights grow where the posterior is narrower than the prior
    log_weights = vae.elbo(x, wide.view(-1, 1, 1).expand(-1, 9, 1))
    marginal = torch.logsumexp(log_weights + normal_log_density(wide)[:, None] + math.log(0.01), 0)
    torch.testing.assert_close(marginal, exact_log_prob(vae, x), rtol=0, atol=1e-7)


def test_elbo_below_iwae_below_the_marginal(vae: Vae) -> None:
    x, coarse = every_example(PAIR), slice(None, None, 10)
    weights = elbo_on_grid(vae, x)
    elbo = (LOG_WEIGHT.exp()[:, None] * weights).sum(0)
    some, share = weights[coarse], (10 * LOG_WEIGHT[coarse].exp())
    pairs = torch.logaddexp(some[:, None], some[None]) - math.log(2)
    iwae_2 = torch.einsum("i,j,ijb->b", share, share, pairs)
    exact = exact_log_prob(vae, x)
    assert bool((elbo < iwae_2 - 1e-6).all()) and bool((iwae_2 < exact - 1e-6).all())


def test_the_loss_is_the_negative_elbo_in_bits_per_dim(vae: Vae) -> None:
    """The closed-form KL of the loss and the sampled one of ``elbo`` have one mean."""
    phase, x = Elbo(vae, VaeSettings(kl_warmup=0.0)), every_example(PAIR)[4:5]
    share = 20 * LOG_WEIGHT[::20].exp()
    losses = torch.stack([phase(Batch(x.double(), noise.view(1, 1), 0.0, 0)) for noise in GRID[::20]])
    expected = -(share * elbo_on_grid(vae, x)[::20, 0]).sum() / BITS
    torch.testing.assert_close((share * losses).sum(), expected, rtol=0, atol=1e-9)


def test_kl_warm_up(vae: Vae) -> None:
    phase, x = Elbo(vae, VaeSettings(kl_warmup=0.5)), every_example(PAIR).double()
    losses = [phase(Batch(x, torch.zeros(9, 1), progress, 0)) for progress in (0.0, 0.25, 0.5, 0.9)]
    kl = phase.curves()["kl"]
    assert kl > 0.01
    for loss, weight in zip(losses, (0.0, 0.5, 1.0, 1.0), strict=True):
        assert float(loss - losses[0]) == pytest.approx(weight * kl, abs=1e-12)


def test_dropout_only_while_training() -> None:
    model = Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.5)).build(PAIR)
    assert isinstance(model, Vae)
    x, noise = every_example(PAIR), torch.zeros(1, 9, 1)
    with torch.no_grad():
        assert torch.equal(model.elbo(x, noise), model.elbo(x, noise))
        model.train()
        assert not torch.equal(model.elbo(x, noise), model.elbo(x, noise))


@pytest.mark.parametrize("kind", ["discretised_logistic", "categorical"])
def test_the_mode_of_each_pixel_is_the_level_of_its_highest_probability(kind: Any) -> None:
    model = Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, likelihood=kind)).build(PAIR)
    noise_BN = torch.randn(20, model.sample_noise, generator=torch.Generator().manual_seed(0)).double()
    assert model.sample_noise == 1, "no noise but the latents'"
    z_BZ = noise_BN[:, :1]
    levels = torch.arange(PAIR.levels)
    x_LDHW = levels.view(-1, 1, 1, 1).expand(-1, *PAIR.shape)
    theta_BDP = model._theta(z_BZ)
    by_level_LBD = torch.stack([model.likelihood.log_prob(x_DHW.flatten().double(), theta_BDP) for x_DHW in x_LDHW])
    assert torch.equal(model.sample(noise_BN).flatten(1).long(), by_level_LBD.argmax(0))
