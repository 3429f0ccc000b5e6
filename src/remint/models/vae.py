"""Variational autoencoder of images and of tables.

    z ~ N(0, I)    x | z ~ a likelihood whose parts are independent    q(z | x) = N(mean(x), diag(scale(x))^2)

Kingma & Welling, Auto-Encoding Variational Bayes (2013); Rezende et al. (2014). The parts of x are an image's pixels
(likelihoods.py) or a row's columns (row_likelihoods.py). In a conditional model, encoder and decoder are given the class,
and the prior remains N(0, I) (Sohn et al., Learning structured output representation, 2015).

Shapes: X the axes of one example (C channels, H height, W width, or D columns), B batch, K importance samples,
Z latent, P parameters of one example's likelihood, N noise numbers, or examples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models import posterior
from remint.models.contract import Batch, Model, Phase
from remint.models.convolutional import DownsamplingNetwork, UpsamplingNetwork
from remint.models.labels import Labels
from remint.models.layers import at_least_single, in_unit, mlp, normal_log_density, to_unit
from remint.models.likelihoods import level_likelihood
from remint.models.pixel_likelihood import PixelLikelihood
from remint.models.row_likelihoods import Gaps, RowFeatures, RowLikelihood
from remint.records import DataSpec
from remint.settings.recipe import VaeSettings

ACTIVE = 0.01  # a latent is active if its posterior mean varies more than this over the data (Burda et al., IWAE, 2016)


class Vae(Model):
    """Variational autoencoder: CanSample, HasElbo, HasLatent and CanImpute (models/contract.py)."""

    def __init__(self, settings: VaeSettings, spec: DataSpec) -> None:
        """Build the model. Raises SettingsError if the likelihood or the network does not fit such data."""
        super().__init__()
        self.spec = spec
        self.conditional = settings.conditional
        self.labels = Labels(settings.conditional, spec)
        self.likelihood = _likelihood(settings, spec)
        self.rows = RowFeatures(spec) if spec.is_table else None
        self.gaps = Gaps(spec.columns)
        self.latent_noise = self.latent_size = settings.latent
        self.sample_noise = settings.latent + self.likelihood.noise_size + self.gaps.noise_size + self.labels.noise_size
        self.impute_noise = posterior.noise_size(settings.latent, self.labels) + self.likelihood.draw_noise
        self.convolutional = settings.network == "residual"
        build = _residual_networks if self.convolutional else _mlp_networks
        self.encoder, self.decoder = build(settings, spec, self.labels.width, self.likelihood.outputs)

    @torch.no_grad()
    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        self.labels.fit(y_N)
        self.gaps.fit(x_NX)

    def posterior(self, x_BX: Tensor, y_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and scale of q(z | x), each of shape (B, Z)."""
        x_BX = x_BX.to(next(self.parameters()).dtype)
        if self.convolutional:
            extra_BF = self.labels.one_hot(y_B, x_BX.dtype) if self.conditional else None
            features = self.encoder(to_unit(x_BX, self.spec.levels), extra_BF)
        else:
            flat_BF = to_unit(x_BX.flatten(1), self.spec.levels) if self.rows is None else self.rows(x_BX)
            features = self.encoder(self.labels.append_one_hot(flat_BF, y_B))
        mean_BZ, spread_BZ = at_least_single(features).chunk(2, dim=1)
        return mean_BZ, F.softplus(spread_BZ) + 1e-4

    def decoder_outputs(self, z: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the parameters of the likelihood, shape (..., B, P), for z of shape (..., B, Z)."""
        inputs = self.labels.append_one_hot(z, y_B)
        if not self.convolutional:
            return at_least_single(self.decoder(inputs))
        maps = at_least_single(self.decoder(inputs.flatten(0, -2)))
        channels = self.spec.image[0]
        # The likelihood needs the parameters of one pixel next to each other.
        return maps.view(maps.shape[0], channels, -1, *maps.shape[2:]).movedim(2, -1).reshape(*z.shape[:-1], -1)

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the mean of q(z | x), shape (B, Z)."""
        return self.posterior(x_BX, y_B)[0]

    def decode(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.likelihood.centre(self.decoder_outputs(z_BZ, y_B))

    def log_likelihood(self, x_BX: Tensor, z: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return log p(x | z) in nats, shape (..., B), for z of shape (..., B, Z). For a row: of its observed values."""
        return self.likelihood.log_prob(x_BX, self.decoder_outputs(z, y_B))

    def elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        mean_BZ, scale_BZ = self.posterior(x_BX, y_B)
        z_KBZ = mean_BZ + scale_BZ * noise_KBN
        log_prior_KB = normal_log_density(z_KBZ).sum(-1)
        log_posterior_KB = (normal_log_density(noise_KBN) - scale_BZ.log()).sum(-1)
        return self.log_likelihood(x_BX, z_KBZ, y_B) + log_prior_KB - log_posterior_KB

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        noise_BN, y_B = self.labels.split_noise(noise_BN, y_B)
        sizes = [self.latent_noise, self.likelihood.noise_size, self.gaps.noise_size]
        z_BZ, likelihood_noise_BN, gap_noise_BG = torch.split(noise_BN, sizes, dim=1)
        complete_BX = self.likelihood.sample(self.decoder_outputs(z_BZ, y_B), likelihood_noise_BN)
        return self.gaps.add(complete_BX, gap_noise_BG)

    def impute(self, x_BX: Tensor, observed_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Draw z from p(z | observed values), then the missing values from p(x | z)."""

        def log_ratio(z_BZ: Tensor, y_B: Tensor | None) -> Tensor:
            return self.likelihood.log_prob(x_BX, self.decoder_outputs(z_BZ, y_B), observed_BX)

        draw_noise = self.likelihood.draw_noise
        chain_BN, draw_BN = torch.split(noise_BN, [self.impute_noise - draw_noise, draw_noise], dim=1)
        z_BZ, y_B = posterior.draw(log_ratio, chain_BN, self.latent_size, self.labels, y_B)
        drawn_BX = self.likelihood.draw(self.decoder_outputs(z_BZ, y_B), draw_BN)
        return torch.where(observed_BX, x_BX, drawn_BX)

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        return self.labels.split_noise(noise_BN, None)[1]


def _mlp_networks(settings: VaeSettings, spec: DataSpec, classes: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Return encoder (an example as a row of numbers, to 2 Z numbers) and decoder (Z numbers to ``outputs``)."""
    features = RowFeatures(spec).width if spec.is_table else spec.dims
    hidden = [settings.hidden] * settings.layers
    encoder = mlp([features + classes, *hidden, 2 * settings.latent], nn.SiLU, norm=True, dropout=settings.dropout)
    return encoder, mlp([settings.latent + classes, *hidden, outputs], nn.SiLU, norm=True, dropout=settings.dropout)


def _residual_networks(settings: VaeSettings, spec: DataSpec, classes: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Return encoder (images to 2 Z numbers) and decoder (Z numbers to maps; the channels are each pixel's parameters)."""
    if spec.is_table:
        raise SettingsError("model.network: residual needs images, but this dataset is a table: use network: mlp")
    channels, height, width = spec.image
    size, maps = (height, width), outputs // (height * width)
    encoder = DownsamplingNetwork(
        channels,
        size,
        settings.width,
        settings.blocks,
        2 * settings.latent,
        extra_features=classes,
        dilation=settings.dilation,
        activation="silu",
        dropout=settings.dropout,
    )
    decoder = UpsamplingNetwork(
        settings.latent + classes,
        settings.width,
        settings.blocks,
        maps,
        size,
        dilation=settings.dilation,
        activation="silu",
        dropout=settings.dropout,
    )
    return encoder, decoder


def _likelihood(settings: VaeSettings, spec: DataSpec) -> PixelLikelihood | RowLikelihood:
    """Return the likelihood of the settings. Raises SettingsError if it does not fit such data."""
    name = settings.likelihood
    if spec.is_table:
        if name not in (None, "sigma_gaussian", "gaussian_mixture"):
            raise SettingsError(
                f"model.likelihood: {name} needs images, but this dataset is a table: "
                "use sigma_gaussian or gaussian_mixture (categorical columns are categorical in both)"
            )
        return RowLikelihood("sigma_gaussian" if name is None else name, spec, settings.mixtures)
    if name == "gaussian_mixture":
        raise SettingsError(
            "model.likelihood: gaussian_mixture needs a table, but this dataset has images: use discretised_logistic"
        )
    law = level_likelihood(name or "discretised_logistic", spec.levels, settings.mixtures)
    return PixelLikelihood(law, spec, settings.pixels)


def kl_from_prior(mean_BZ: Tensor, scale_BZ: Tensor) -> Tensor:
    """Return KL(q(z | x) || N(0, I)) of each latent, nats, shape (B, Z): 1/2 (mean^2 + scale^2 - 1 - log scale^2)."""
    return 0.5 * (mean_BZ.square() + scale_BZ.square() - 1 - 2 * scale_BZ.log())


def mean_over_ranks(mine: Tensor, rows: int) -> Tensor:
    """Return the mean over the global batch, without gradient, of a mean over ``rows`` of this rank. All ranks must call it.

    It is summed in the order of the ranks. A single process gets its own tensor back.
    """
    mine = mine.detach()
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    weighted = torch.cat([mine.flatten() * rows, mine.new_tensor([rows])])
    every = [torch.empty_like(weighted) for _ in range(dist.get_world_size())]
    dist.all_gather(every, weighted)
    total = torch.stack(every).sum(0)
    return (total[:-1] / total[-1]).view_as(mine)


class Elbo(Phase):
    """Minus the evidence lower bound, in bits per dimension or nats of a row, with the KL in closed form.

    The KL's weight rises from 0 to ``beta`` over the first ``kl_warmup`` of the steps. Without this, latents can collapse
    before the decoder uses them (Bowman et al., Generating Sentences from a Continuous Space, 2016). For the same reason
    ``free_bits`` nats of each latent are free: sum_z max(free_bits, mean over the batch of KL_z) replaces the
    KL (Kingma et al., Improved variational inference with inverse autoregressive flow, 2016). With a beta other than
    1 the model is a beta-VAE (Higgins et al., 2017), and the loss is not a bound.
    """

    name: ClassVar[str] = "elbo"

    def __init__(self, model: Vae, settings: VaeSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.noise_size = model.latent_noise

    def forward(self, batch: Batch) -> Tensor:
        mean_BZ, scale_BZ = self.model.posterior(batch.x_BX, batch.y_B)
        log_likelihood_B = self.model.log_likelihood(batch.x_BX, mean_BZ + scale_BZ * batch.noise_BN, batch.y_B)
        kl_Z = kl_from_prior(mean_BZ, scale_BZ).mean(0)
        self.metrics["kl"] = in_unit(kl_Z.detach().sum(), self.model.spec)
        # Moments of the posterior means over this rank's rows, and the number of rows.
        self.metrics["moments_2Z"] = torch.stack([mean_BZ.mean(0), mean_BZ.square().mean(0)]).detach()
        self.metrics["rows"] = torch.full((), len(mean_BZ))
        loss = self.kl_weight(batch.progress) * self._with_free_bits(kl_Z, len(mean_BZ)) - log_likelihood_B.mean()
        return in_unit(loss, self.model.spec)

    def kl_weight(self, progress: float) -> float:
        warmup = self.settings.kl_warmup
        return self.settings.beta * (min(1.0, progress / warmup) if warmup else 1.0)

    def _with_free_bits(self, kl_Z: Tensor, rows: int) -> Tensor:
        """Return the KL, a mean over ``rows``, with the floor applied.

        The global batch decides which latents are below it, for any number of ranks.
        """
        floor = self.settings.free_bits
        if floor == 0:
            return kl_Z.sum()
        return torch.where(mean_over_ranks(kl_Z, rows) > floor, kl_Z, floor).sum()

    def curves(self) -> dict[str, float]:
        """Return ``kl`` and ``active_units`` (the number of active latents) of the last batch. All ranks must call it."""
        if not self.metrics:
            return {}
        mean_Z, square_Z = mean_over_ranks(self.metrics["moments_2Z"], int(self.metrics["rows"]))
        return {"kl": float(self.metrics["kl"]), "active_units": float((square_Z - mean_Z.square() > ACTIVE).sum())}


def build(settings: VaeSettings, spec: DataSpec) -> Vae:
    """Build the model. Raises SettingsError as Vae does."""
    return Vae(settings, spec)


def phases(model: Vae, settings: VaeSettings) -> list[Phase]:
    return [Elbo(model, settings)]
