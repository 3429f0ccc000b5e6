"""The VAE against exact oracles, in float64.

With one latent, log p(x) is integrated on a grid of z, and means over the noise on a grid of noise. Images have two pixels,
so that all of them can be listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.contract import Batch, standard_normal
from remint.models.layers import normal_log_density
from remint.models.vae import Elbo, Vae, build, kl_from_prior
from remint.records import DataSpec
from remint.settings.recipe import VaeSettings
from tests.support.models_cases import IMAGE, MIXED, NUMBERS, PAIR, Case, every_example, examples, labels

GRID = torch.linspace(-9, 9, 1801, dtype=torch.float64)  # trapezoidal weights are equal: the integrands vanish at the ends
LOG_WEIGHT = normal_log_density(GRID) + math.log(0.01)
BITS = PAIR.dims * math.log(2)
BINARY_PAIR = PAIR.model_copy(update={"levels": 2})

KINDS: dict[str, tuple[DataSpec, dict[str, Any]]] = {
    "logistic": (PAIR, {"mixtures": 2}),
    "categorical": (PAIR, {"likelihood": "categorical"}),
    "sigma_gaussian": (PAIR, {"likelihood": "sigma_gaussian"}),
    "bernoulli": (BINARY_PAIR, {"likelihood": "bernoulli"}),
    "residual": (PAIR, {"network": "residual", "width": 4, "blocks": 1}),
    "table": (MIXED, {}),
    "table-mixture": (MIXED, {"likelihood": "gaussian_mixture", "mixtures": 2}),
}
IMAGES = [name for name, (spec, _) in KINDS.items() if not spec.is_table]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(kind: str) -> Vae:
    spec, settings = KINDS[kind]
    small = {"latent": 1, "hidden": 8, "dropout": 0.0, "pixels": "draw"}
    model = Case("vae", VaeSettings.model_validate(small | settings)).build(spec, seed=2, spread=0.5)
    assert isinstance(model, Vae)
    return model.requires_grad_(False)


@pytest.fixture(params=KINDS)
def vae(request: pytest.FixtureRequest) -> Vae:
    return make(request.param)


@pytest.fixture(params=IMAGES)
def image_vae(request: pytest.FixtureRequest) -> Vae:
    return make(request.param)


def some_examples(vae: Vae) -> Tensor:
    """Return every image, or nine rows of a table, some with missing values."""
    if not vae.spec.is_table:
        return every_example(vae.spec)
    x = examples(vae.spec, 9)
    assert bool(x.isnan().any())
    return x


def exact_log_prob(vae: Vae, x: Tensor) -> Tensor:
    """Return the log of the integral of p(x | z) N(z) over z, shape (B,)."""
    z = GRID.view(-1, 1, 1).expand(-1, len(x), 1)
    return torch.logsumexp(vae.log_likelihood(x, z) + LOG_WEIGHT[:, None], 0)


def elbo_on_grid(vae: Vae, x: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z | x) at every noise of the grid, shape (grid, B)."""
    return vae.elbo(x, GRID.view(-1, 1, 1).expand(-1, len(x), 1))


def test_marginal_probabilities_sum_to_one_and_match_the_samples(image_vae: Vae) -> None:
    levels, mass = image_vae.spec.levels, exact_log_prob(image_vae, every_example(image_vae.spec)).exp()
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-9)
    drawn = image_vae.sample(standard_normal((40_000, image_vae.sample_noise), 4).double()).flatten(1).long()
    share = torch.bincount(drawn @ torch.tensor([levels, 1]), minlength=levels**2) / 40_000
    assert float((share - mass).abs().sum()) < 0.025


def test_the_mean_importance_weight_is_the_marginal_probability(vae: Vae) -> None:
    """E exp(elbo) = p(x) exactly: this finds any missing constant."""
    x = some_examples(vae)
    mean, scale = vae.posterior(x)
    noise = (GRID.view(-1, 1, 1) - mean) / scale  # so that z runs over the grid
    log_weights = vae.elbo(x, noise) + (normal_log_density(noise) - scale.log()).squeeze(-1)
    torch.testing.assert_close(torch.logsumexp(log_weights + math.log(0.01), 0), exact_log_prob(vae, x), rtol=0, atol=1e-7)


def test_elbo_is_below_iwae_and_iwae_below_the_marginal(vae: Vae) -> None:
    x, coarse = some_examples(vae), slice(None, None, 10)
    weights = elbo_on_grid(vae, x)
    elbo = (LOG_WEIGHT.exp()[:, None] * weights).sum(0)
    some, share = weights[coarse], (10 * LOG_WEIGHT[coarse].exp())
    pairs = torch.logaddexp(some[:, None], some[None]) - math.log(2)
    iwae_2 = torch.einsum("i,j,ijb->b", share, share, pairs)
    exact = exact_log_prob(vae, x)
    assert bool((elbo < iwae_2 - 1e-6).all()) and bool((iwae_2 < exact - 1e-6).all())


def test_the_loss_is_the_negative_elbo_in_the_unit_of_the_data(vae: Vae) -> None:
    """The closed-form KL of the loss and the sampled KL of ``elbo`` have the same mean."""
    phase, x = Elbo(vae, VaeSettings(kl_warmup=0.0)), some_examples(vae)[3:4]
    share = 20 * LOG_WEIGHT[::20].exp()
    losses = torch.stack([phase(Batch(x.double(), noise.view(1, 1), 0.0, 0)) for noise in GRID[::20]])
    expected = -(share * elbo_on_grid(vae, x)[::20, 0]).sum() / (1.0 if vae.spec.is_table else BITS)
    torch.testing.assert_close((share * losses).sum(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.3, 4.0])
def test_the_weight_of_the_kl_rises_to_beta(beta: float) -> None:
    phase, x = Elbo(make("logistic"), VaeSettings(kl_warmup=0.5, beta=beta)), every_example(PAIR).double()
    losses = [phase(Batch(x, torch.zeros(9, 1), progress, 0)) for progress in (0.0, 0.25, 0.5, 0.9)]
    kl = phase.curves()["kl"]
    assert kl > 0.01
    for loss, weight in zip(losses, (0.0, 0.5, 1.0, 1.0), strict=True):
        assert float(loss - losses[0]) == pytest.approx(beta * weight * kl, abs=1e-12)


def test_free_bits_are_a_lower_limit_of_the_mean_kl_of_each_latent() -> None:
    model = Case("vae", VaeSettings(latent=3, hidden=8, dropout=0.0)).build(PAIR, seed=2, spread=0.5)
    assert isinstance(model, Vae)
    batch = Batch(every_example(PAIR).double(), standard_normal((9, 3), 1).double(), 0.5, 0)
    means = kl_from_prior(*model.posterior(batch.x_BX)).mean(0)
    floor = float(means.detach().sort().values[1]) - 1e-9  # the lowest of three is below it
    kept = means[means > floor]
    assert len(kept) == 2

    def gradient(free_bits: float, progress: float = 0.5) -> tuple[Tensor, Tensor]:
        batch.progress = progress
        loss = Elbo(model, VaeSettings(latent=3, kl_warmup=0.5, free_bits=free_bits))(batch)
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    none, without = gradient(0.0, progress=0.0)  # only the likelihood
    loss, with_floor = gradient(floor)
    torch.testing.assert_close(loss - none, (kept.sum() + floor).detach() / BITS)
    of_kept = torch.cat([g.flatten() for g in torch.autograd.grad(kept.sum() / BITS, list(model.encoder.parameters()))])
    expected = without.clone()
    expected[: len(of_kept)] += of_kept
    torch.testing.assert_close(with_floor, expected)


def test_active_units_are_the_latents_whose_mean_varies_over_the_data() -> None:
    vae = build(VaeSettings(latent=3, layers=0), NUMBERS)
    first = vae.encoder.get_submodule("0")
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:3] = torch.diag(torch.tensor([1.0, 0.11, 0.09]))  # variances 1, 0.0121 and 0.0081 of standardised data
        first.bias[:3] = torch.tensor([0.0, 5.0, 5.0])
    x = standard_normal((600, 3), 3).double()
    x = ((x - x.mean(0)) / x.std(0, correction=0)).float()
    phase = Elbo(vae, VaeSettings(latent=3))
    phase(Batch(x.double(), torch.zeros(600, 3), 0.5, 0))
    assert phase.curves()["active_units"] == 2.0


def test_dropout_is_active_only_in_training() -> None:
    model = Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.5)).build(PAIR)
    assert isinstance(model, Vae)
    x, noise = every_example(PAIR), torch.zeros(1, 9, 1)
    with torch.no_grad():
        assert torch.equal(model.elbo(x, noise), model.elbo(x, noise))
        model.train()
        assert not torch.equal(model.elbo(x, noise), model.elbo(x, noise))


def test_the_residual_decoder_keeps_each_pixels_parameters_together() -> None:
    """The last layer is local: a change of the map at one pixel changes only the likelihood of that pixel."""
    model = Case("vae", VaeSettings(latent=2, network="residual", width=4, blocks=1)).build(IMAGE).requires_grad_(False)
    assert isinstance(model, Vae)
    z = standard_normal((3, 2), 1).double()
    channels, (c, h, w) = 9, IMAGE.image
    maps = model.decoder(z)
    theta = model.decoder_outputs(z).view(3, c, h, w, channels)
    for place in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        torch.testing.assert_close(theta[:, *place], maps[:, place[0] * channels : (place[0] + 1) * channels, *place[1:]])


def test_a_conditional_vae_gives_the_class_to_encoder_and_decoder() -> None:
    for network in ("mlp", "residual"):
        settings = VaeSettings.model_validate(
            {"latent": 2, "hidden": 8, "width": 4, "blocks": 1, "network": network, "conditional": True}
        )
        model = Case("vae", settings).build(IMAGE, spread=0.5).requires_grad_(False)
        assert isinstance(model, Vae)
        x, y, z = examples(IMAGE, 6), labels(IMAGE, 6), standard_normal((6, 2), 1).double()
        assert y is not None
        other = (y + 1) % IMAGE.classes
        assert not torch.allclose(model.posterior(x, y)[0], model.posterior(x, other)[0])
        assert not torch.allclose(model.decoder_outputs(z, y), model.decoder_outputs(z, other))
        assert not torch.allclose(model.log_likelihood(x, z, y), model.log_likelihood(x, z, other))


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (
            MIXED,
            {"likelihood": "categorical"},
            "model.likelihood: categorical .* a table: use sigma_gaussian or gaussian_mixture",
        ),
        (MIXED, {"network": "residual"}, "model.network: residual needs images"),
        (IMAGE, {"likelihood": "gaussian_mixture"}, "model.likelihood: gaussian_mixture .* images: use discretised_logistic"),
        (IMAGE, {"likelihood": "bernoulli"}, "these have 17"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(spec: DataSpec, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(VaeSettings.model_validate(settings), spec)
