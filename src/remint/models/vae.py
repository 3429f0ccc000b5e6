"""Variational autoencoder over discrete pixels.

    z ~ N(0, I)    x | z ~ product over pixels of a discrete likelihood    q(z | x) = N(mean(x), diag(scale(x))^2)

Kingma & Welling, Auto-Encoding Variational Bayes (2013); Rezende et al. (2014).

Shapes: B batch, C channels, H height, W width, D = C H W dimensions, Z latent, K importance samples,
P parameters of one pixel's likelihood, N noise numbers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.models.contract import Batch, Model, Phase
from remint.models.layers import at_least_single, in_unit, mlp, normal_log_density, to_unit
from remint.models.likelihoods import likelihood
from remint.recipe import VaeSettings
from remint.records import DataSpec


class Vae(Model):
    """CanSample and HasElbo (models/contract.py)."""

    def __init__(self, settings: VaeSettings, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.likelihood = likelihood(settings.likelihood, spec.levels, settings.mixtures)
        self.latent_noise = settings.latent
        self.draws_pixels = settings.pixels == "draw"
        self.sample_noise = settings.latent + (spec.dims * self.likelihood.noise_per_dim if self.draws_pixels else 0)
        hidden = [settings.hidden] * settings.layers
        self.encoder = mlp([spec.dims, *hidden, 2 * settings.latent], nn.SiLU, norm=True, dropout=settings.dropout)
        outputs = spec.dims * self.likelihood.parameters_per_dim
        self.decoder = mlp([settings.latent, *hidden, outputs], nn.SiLU, norm=True, dropout=settings.dropout)

    def posterior(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(z | x), each shape (B, Z)."""
        x_BD = to_unit(x_BCHW.flatten(1).to(next(self.parameters()).dtype), self.spec.levels)
        mean_BZ, spread_BZ = at_least_single(self.encoder(x_BD)).chunk(2, dim=1)
        return mean_BZ, F.softplus(spread_BZ) + 1e-4

    def log_likelihood(self, x_BCHW: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats, shape (..., B), of z of shape (..., B, Z)."""
        return self.likelihood.log_prob(x_BCHW.flatten(1), self._theta(z)).sum(-1)

    def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        mean_BZ, scale_BZ = self.posterior(x_BCHW)
        z_KBZ = mean_BZ + scale_BZ * noise_KBN
        log_prior_KB = normal_log_density(z_KBZ).sum(-1)
        log_posterior_KB = (normal_log_density(noise_KBN) - scale_BZ.log()).sum(-1)
        return self.log_likelihood(x_BCHW, z_KBZ) + log_prior_KB - log_posterior_KB

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        z_BZ, pixels_BN = noise_BN[:, : self.latent_noise], noise_BN[:, self.latent_noise :]
        theta_BDP = self._theta(z_BZ)
        x_BD = self.likelihood.sample(theta_BDP, pixels_BN) if self.draws_pixels else self._likeliest(theta_BDP)
        return x_BD.view(-1, *self.spec.shape)

    def _likeliest(self, theta_BDP: Tensor) -> Tensor:
        """The level with the highest probability of each pixel, uint8, shape (B, D).

        Given z the pixels are independent, so a draw adds noise to each that real images do not have: the mode is the
        picture that the latents describe (on digits its Frechet distance is a quarter lower).
        """
        highest_BD = torch.full(theta_BDP.shape[:-1], -torch.inf, device=theta_BDP.device, dtype=theta_BDP.dtype)
        x_BD = torch.zeros(theta_BDP.shape[:-1], device=theta_BDP.device, dtype=torch.uint8)
        for level in range(self.spec.levels):  # one at a time: all at once would be as many copies of theta
            log_prob_BD = self.likelihood.log_prob(torch.full_like(highest_BD, level), theta_BDP)
            x_BD[log_prob_BD > highest_BD] = level
            highest_BD = torch.maximum(highest_BD, log_prob_BD)
        return x_BD

    def _theta(self, z: Tensor) -> Tensor:
        """Parameters of each pixel's likelihood, shape (..., D, P)."""
        return at_least_single(self.decoder(z)).view(*z.shape[:-1], self.spec.dims, -1)


class Elbo(Phase):
    """Minus the evidence lower bound in bits per dimension, with the KL in closed form.

    KL(q(z | x) || N(0, I)) = 1/2 sum(mean^2 + scale^2 - 1 - log scale^2). Its weight rises from 0 to 1 over the
    first ``kl_warmup`` of the steps, lest the latents be given up before the decoder can read them
    (Bowman et al., Generating Sentences from a Continuous Space, 2016).
    """

    name: ClassVar[str] = "elbo"

    def __init__(self, model: Vae, settings: VaeSettings) -> None:
        super().__init__()
        self.model = model
        self.kl_warmup = settings.kl_warmup
        self.noise_size = model.latent_noise
        self.kl = torch.zeros(())

    def forward(self, batch: Batch) -> Tensor:
        mean_BZ, scale_BZ = self.model.posterior(batch.x_BX)
        log_likelihood_B = self.model.log_likelihood(batch.x_BX, mean_BZ + scale_BZ * batch.noise_BN)
        kl_B = 0.5 * (mean_BZ.square() + scale_BZ.square() - 1 - 2 * scale_BZ.log()).sum(1)
        self.kl = in_unit(kl_B.detach().mean(), self.model.spec)
        weight = min(1.0, batch.progress / self.kl_warmup) if self.kl_warmup else 1.0
        return in_unit((weight * kl_B - log_likelihood_B).mean(), self.model.spec)

    def curves(self) -> dict[str, float]:
        return {"kl": float(self.kl)}


def build(settings: VaeSettings, spec: DataSpec) -> Vae:
    return Vae(settings, spec)


def phases(model: Vae, settings: VaeSettings) -> list[Phase]:
    return [Elbo(model, settings)]
