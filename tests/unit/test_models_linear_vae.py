"""A linear VAE is probabilistic PCA, whose likelihood and posterior are closed-form (Tipping & Bishop, 1999). In float64.

    z ~ N(0, I)    x | z ~ N(W z + mu, s^2 I)    x ~ N(mu, W W' + s^2 I)    z | x ~ N(M^-1 W' (x - mu), s^2 M^-1)

with M = W' W + s^2 I; at the maximum of the likelihood W = U (L - s^2 I)^1/2 of the leading eigenvectors U and eigenvalues
L of the covariance, and s^2 the mean of the other eigenvalues. Then M = L is diagonal, and so the encoder can be exact.

Shapes: N rows, D columns, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from remint.models.contract import Batch, standard_normal
from remint.models.layers import last_linear, normal_log_density
from remint.models.row_likelihoods import SigmaGaussianColumns
from remint.models.vae import Elbo, Vae, build
from remint.records import Column, DataSpec
from remint.settings.recipe import VaeSettings

D = 5
SPEC = DataSpec(shape=(D,), columns=tuple(Column(name=name, missing=True) for name in "abcde"), classes=3)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Pca(NamedTuple):
    """Maximum-likelihood PCA of rows, with its closed forms."""

    x_ND: Tensor
    mean_D: Tensor
    weight_DZ: Tensor
    variance: Tensor  # s^2

    @property
    def latent(self) -> int:
        return self.weight_DZ.shape[1]

    def of(self, columns: list[int]) -> Pca:
        """Return the marginal of some columns."""
        return Pca(self.x_ND[:, columns], self.mean_D[columns], self.weight_DZ[columns], self.variance)

    def log_prob(self, x_ND: Tensor) -> Tensor:
        covariance = self.weight_DZ @ self.weight_DZ.T + self.variance * torch.eye(len(self.mean_D))
        log_prob: Tensor = MultivariateNormal(self.mean_D, covariance).log_prob(x_ND)
        return log_prob

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Return M^-1 W', shape (Z, D), and the standard deviations of the posterior, shape (Z,)."""
        inverse_ZZ = torch.linalg.inv(self.weight_DZ.T @ self.weight_DZ + self.variance * torch.eye(self.latent))
        assert float((inverse_ZZ - torch.diag(inverse_ZZ.diag())).abs().max()) < 1e-12
        return inverse_ZZ @ self.weight_DZ.T, (self.variance * inverse_ZZ.diag()).sqrt()


def pca(latent: int) -> Pca:
    """Return the PCA of random correlated rows."""
    x_ND = standard_normal((300, D), 1).double() @ standard_normal((D, D), 2).double() + 0.3
    mean_D = x_ND.mean(0)
    values_D, vectors_DD = torch.linalg.eigh((x_ND - mean_D).T @ (x_ND - mean_D) / len(x_ND))
    variance = values_D[:-latent].mean()
    return Pca(x_ND, mean_D, vectors_DD[:, -latent:] * (values_D[-latent:] - variance).sqrt(), variance)


def linear_vae(model: Pca, columns: list[int], classes: Tensor | None = None) -> Vae:
    """Return a VAE whose encoder is exact for rows in which only ``columns`` are observed.

    ``classes``: mean of each class, shape (classes, D), of a conditional model.
    """
    vae = build(VaeSettings(latent=model.latent, layers=0, conditional=classes is not None), SPEC).double().eval()
    encoder, decoder, numeric = last_linear(vae.encoder), last_linear(vae.decoder), vae.likelihood.law
    assert isinstance(numeric, SigmaGaussianColumns)
    latent, seen = model.latent, model.of(columns)
    reading_ZD, scale_Z = seen.posterior()
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[:latent, columns] = reading_ZD
        encoder.bias[latent:] = torch.log(torch.expm1(scale_Z - 1e-4))  # the inverse of the transformation in Vae.posterior
        decoder.weight[:, :latent] = model.weight_DZ
        if classes is None:
            encoder.bias[:latent] = -reading_ZD @ seen.mean_D
            decoder.bias.copy_(model.mean_D)
        else:
            encoder.bias[:latent] = 0.0
            encoder.weight[:latent, 2 * D :] = -reading_ZD @ classes.T[columns]
            decoder.weight[:, latent:] = classes.T
            decoder.bias.zero_()
        numeric.log_sigma_D.fill_(0.5 * float(model.variance.log()))
    return vae.requires_grad_(False)


def with_wrong_encoder(vae: Vae) -> Vae:
    """Return the VAE with an encoder that is not the posterior."""
    encoder = last_linear(vae.encoder)
    encoder.weight[:] += 0.05 * standard_normal(tuple(encoder.weight.shape), 6).double()
    encoder.bias[vae.latent_noise :] += 0.4
    return vae


def noise_with_the_moments(latent: int) -> Tensor:
    """Return 2 Z points with the standard normal mean of every polynomial of degree two, shape (2 Z, Z)."""
    return math.sqrt(latent) * torch.cat([torch.eye(latent), -torch.eye(latent)])


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_with_the_exact_posterior_every_bound_is_the_likelihood(latent: int) -> None:
    model = pca(latent)
    vae = linear_vae(model, list(range(D)))
    weights = vae.elbo(model.x_ND, standard_normal((20, 300, latent), 3).double())
    torch.testing.assert_close(weights, model.log_prob(model.x_ND).expand(20, -1), rtol=0, atol=1e-9)


def test_with_another_encoder_the_elbo_is_below_the_likelihood_and_iwae_approaches_it() -> None:
    model = pca(2)
    vae, x = with_wrong_encoder(linear_vae(model, list(range(D)))), model.x_ND[:40]
    exact = model.log_prob(x)
    corners = noise_with_the_moments(2)  # the log weight is a polynomial of degree two in the noise
    elbo = vae.elbo(x, corners[:, None].expand(-1, 40, -1)).mean(0)
    assert bool((elbo < exact - 1e-3).all())
    log_weights = vae.elbo(x, standard_normal((8_192, 40, 2), 4).double())
    iwae = [(log_weights.view(-1, k, 40).logsumexp(1) - math.log(k)).mean(0) for k in (1, 8, 64, 512)]
    gaps = torch.stack([(exact - bound).mean() for bound in iwae])
    assert bool((gaps[1:] < 0.5 * gaps[:-1]).all()) and abs(float(gaps[-1])) < 0.01
    grid = torch.linspace(-12, 12, 241)
    every = torch.cartesian_prod(grid, grid)
    weighted = vae.elbo(x[:5], every[:, None].expand(-1, 5, -1)) + normal_log_density(every).sum(1, keepdim=True)
    limit = weighted.logsumexp(0) + 2 * math.log(0.1)
    torch.testing.assert_close(limit, exact[:5], rtol=0, atol=1e-6)


def test_the_gradient_is_zero_at_the_maximum_of_the_likelihood() -> None:
    """The training loss, with the noise integrated exactly, is stationary at the solution of probabilistic PCA."""
    model = pca(2)
    vae = linear_vae(model, list(range(D))).requires_grad_(True)
    corners = noise_with_the_moments(2)
    batch = Batch(model.x_ND.repeat(4, 1), corners.repeat_interleave(300, 0), progress=1.0, step=0)
    loss = Elbo(vae, VaeSettings(latent=2))(batch)
    assert float(loss.detach()) == pytest.approx(-float(model.log_prob(model.x_ND).mean()), abs=1e-9)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None
        pull = parameter.grad.sum() if "log_sigma" in name else parameter.grad  # PCA has one sigma, not one for each column
        assert float(pull.abs().max()) < 1e-9, name


@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1, 4], [2]])
def test_a_row_with_missing_values_has_the_likelihood_of_its_observed_values(columns: list[int]) -> None:
    model = pca(1)
    x = torch.full_like(model.x_ND, torch.nan)
    x[:, columns] = model.x_ND[:, columns]
    weights = linear_vae(model, columns).elbo(x, standard_normal((20, 300, 1), 3).double())
    expected = model.of(columns).log_prob(model.x_ND[:, columns])
    torch.testing.assert_close(weights, expected.expand(20, -1), rtol=0, atol=1e-9)


def test_rows_with_different_missing_values_have_the_likelihood_of_their_observed_values() -> None:
    model = pca(1)
    x = model.x_ND[:32].clone()
    patterns = torch.arange(32).unsqueeze(1) >> torch.arange(D) & 1  # every set of columns, also the empty one
    x[patterns == 0] = torch.nan
    vae = linear_vae(model, list(range(D)))
    z = torch.linspace(-12, 12, 4_001)
    marginal = (vae.log_likelihood(x, z.view(-1, 1, 1).expand(-1, 32, 1)) + normal_log_density(z)[:, None]).logsumexp(0)
    elbo = vae.elbo(x, noise_with_the_moments(1)[:, None].expand(-1, 32, -1)).mean(0)
    for row, pattern in enumerate(patterns.bool()):
        columns = pattern.nonzero().flatten().tolist()
        expected = float(model.of(columns).log_prob(x[row, columns])) if columns else 0.0
        assert float(marginal[row]) + math.log(0.006) == pytest.approx(expected, abs=1e-6)
        assert float(elbo[row]) < expected + 1e-9


def test_a_conditional_vae_has_the_likelihood_given_the_class() -> None:
    model, means = pca(2), 2 * standard_normal((3, D), 7).double()
    y = torch.arange(300) % 3
    vae = linear_vae(model, list(range(D)), classes=means)
    weights = vae.elbo(model.x_ND, standard_normal((5, 300, 2), 3).double(), y)
    around_zero = Pca(model.x_ND, torch.zeros(D), model.weight_DZ, model.variance)
    expected = around_zero.log_prob(model.x_ND - means[y])
    torch.testing.assert_close(weights, expected.expand(5, -1), rtol=0, atol=1e-9)


def test_samples_have_the_mean_and_covariance_of_the_model() -> None:
    model, n = pca(2), 40_000
    x = linear_vae(model, list(range(D))).sample(standard_normal((n, 2 + D), 8).double()).double()
    covariance = model.weight_DZ @ model.weight_DZ.T + model.variance * torch.eye(D)
    spread = covariance.diag().sqrt()
    torch.testing.assert_close((x.mean(0) - model.mean_D) / spread, torch.zeros(D), rtol=0, atol=5 / n**0.5)
    error = ((x - x.mean(0)).T @ (x - x.mean(0)) / n - covariance) / spread.outer(spread)
    torch.testing.assert_close(error, torch.zeros(D, D), rtol=0, atol=8 / n**0.5)


def test_imputed_values_have_the_conditional_moments_given_the_observed_ones() -> None:
    """E[x missing | x observed] and its covariance of the closed-form Gaussian, for any encoder."""
    model, n = pca(2), 2_000
    vae = with_wrong_encoder(linear_vae(model, list(range(D))))
    covariance = model.weight_DZ @ model.weight_DZ.T + model.variance * torch.eye(D)
    noise = standard_normal((n, vae.impute_noise), 9).double()
    for seen in ([0, 1, 2, 3], [1, 4]):
        gone = [place for place in range(D) if place not in seen]
        x = torch.full((n, D), torch.nan, dtype=torch.float32)
        x[:, seen] = model.x_ND[0, seen].float()
        drawn = vae.impute(x, ~x.isnan(), noise).double()[:, gone]
        reading = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, gone])
        expected = model.mean_D[gone] + (x[0, seen].double() - model.mean_D[seen]) @ reading
        variance = covariance[gone][:, gone] - covariance[gone][:, seen] @ reading
        spread = variance.diag().sqrt()
        assert float(((drawn.mean(0) - expected) / spread).abs().max()) < 5 / n**0.5
        error = (torch.cov(drawn.T).reshape(variance.shape) - variance) / spread.outer(spread)
        assert float(error.abs().max()) < 8 / n**0.5
