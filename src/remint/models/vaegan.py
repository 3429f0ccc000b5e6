"""Hybrid of a variational autoencoder and a generative adversarial network: the decoder also has an adversarial loss.

    encoder:  -ELBO                                               as in models/vae.py
    decoder:  -E log p(x | z), z ~ q(z | x)  +  weight * generator's loss of m(z), z ~ N(0, I)
    critic:   critic's loss of x against m(z), and its penalty     as in models/adversarial.py

Here m(z) is the mean image of p(x | z): the critic's gradient passes through it, and a sample shows it. Larsen et al.,
Autoencoding beyond pixels using a learned similarity metric (2016). They compare the critic's features; here the
likelihood of the pixels is used instead, so that the ELBO remains a bound, comparable with that of the plain autoencoder.

Shapes: X the axes of one image, B batch, N noise numbers, Z latent.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.adversarial import AdversarialGenerator, AdversarialPhase, CriticPhase, generator_loss
from remint.models.augment import Augment
from remint.models.contract import Batch, Phase
from remint.models.critics import Critic
from remint.models.layers import in_unit
from remint.models.pixel_likelihood import PixelLikelihood
from remint.models.space import CriticSpace
from remint.models.vae import Elbo, Vae
from remint.records import DataSpec
from remint.settings.recipe import VaeGanSettings


class VaeGan(Vae, AdversarialGenerator):
    """Hybrid model: all that a Vae can, and the generator of the adversarial game."""

    likelihood: PixelLikelihood

    def __init__(self, settings: VaeGanSettings, spec: DataSpec) -> None:
        """Build the model. Raises SettingsError if the data are a table, and as Vae does."""
        if spec.is_table:
            raise SettingsError("family 'vaegan' needs images, but this dataset is a table: use vae or gan")
        super().__init__(settings, spec)
        self.space = CriticSpace(spec)

    def forward(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return mean images for z drawn from the prior, as input of the critic: values in [-1, 1], shape (B, X)."""
        noise_BN, y_B = self.labels.split_noise(noise_BN, y_B)
        return self.likelihood.mean(self.decoder_outputs(noise_BN[:, : self.latent_noise], y_B))


class EncoderPhase(Phase):
    """Phase that trains the encoder by the ELBO, through the current decoder."""

    name: ClassVar[str] = "encoder"
    bound: Elbo

    def __init__(self, model: VaeGan, settings: VaeGanSettings) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.reference_frozen(bound=Elbo(model, settings))
        self.noise_size, self.metrics = self.bound.noise_size, self.bound.metrics

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.bound(batch)
        return loss

    def curves(self) -> dict[str, float]:
        return self.bound.curves()


class DecoderPhase(AdversarialPhase):
    """Phase that trains the decoder: reconstruction of encoded images, and adversarial loss of images drawn from the prior."""

    name: ClassVar[str] = "decoder"
    model: VaeGan
    critic: Critic
    augment: Augment

    def __init__(self, model: VaeGan, critic: Critic, augment: Augment, settings: VaeGanSettings) -> None:
        super().__init__(settings.critic)
        self.decoder, self.likelihood = model.decoder, model.likelihood
        self.reference_frozen(model=model, critic=critic, augment=augment)
        self.weight = settings.adversarial
        real = augment.noise_size if settings.critic.loss == "relativistic" else 0
        self.sizes = [model.latent_noise, model.sample_noise, augment.noise_size, real]
        self.noise_size = sum(self.sizes)

    def forward(self, batch: Batch) -> Tensor:
        posterior_BZ, noise_BN, fake_noise_BN, real_noise_BN = torch.split(batch.noise_BN, self.sizes, dim=1)
        real_B = None
        with torch.no_grad():
            mean_BZ, scale_BZ = self.model.posterior(batch.x_BX, batch.y_B)
            if self.settings.loss == "relativistic":
                real_B = self.critic(self.augment(self.model.space.encode(batch.x_BX), real_noise_BN), batch.y_B)
        log_likelihood_B = self.model.log_likelihood(batch.x_BX, mean_BZ + scale_BZ * posterior_BZ, batch.y_B)
        reconstruction = -in_unit(log_likelihood_B.mean(), self.model.spec)
        fake_BX = self.augment(self.model(noise_BN, batch.y_B), fake_noise_BN)
        adversarial = generator_loss(self.settings.loss, real_B, self.critic(fake_BX, batch.y_B))
        self.metrics.update(reconstruction=reconstruction.detach(), adversarial=adversarial.detach())
        return reconstruction + self.weight * adversarial


def build(settings: VaeGanSettings, spec: DataSpec) -> VaeGan:
    """Build the model. Raises SettingsError as VaeGan does."""
    return VaeGan(settings, spec)


def phases(model: VaeGan, settings: VaeGanSettings) -> list[Phase]:
    critic = Critic(settings.critic, model.space, model.labels)
    augment = Augment(settings.critic, model.spec)
    return [
        EncoderPhase(model, settings),
        DecoderPhase(model, critic, augment, settings),
        CriticPhase(critic, model, augment, settings.critic),
    ]
