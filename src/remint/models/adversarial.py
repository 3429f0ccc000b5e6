"""Losses, penalties and phases of the game between a critic D and a generator G.

    relativistic    critic: mean softplus(D(G(z)) - D(x))                generator: mean softplus(D(x) - D(G(z)))
    minimax         critic: mean softplus(-D(x)) + softplus(D(G(z)))     generator: -mean softplus(D(G(z)))
    non_saturating  critic: as minimax                                   generator: mean softplus(-D(G(z)))
    wgan_gp         critic: mean D(G(z)) - D(x)                          generator: -mean D(G(z))

    penalty of the first three: weight / 2 (R1 + R2), R1 = mean |grad D(x)|^2 over real x, R2 = the same over G(z)
    of wgan_gp:                 weight mean (|grad D(x')| - 1)^2 over x' = u x + (1 - u) G(z), u uniform

Goodfellow et al., Generative adversarial nets (2014), with sigmoid(D) as their discriminator; Gulrajani et al., Improved
training of Wasserstein GANs (2017); Jolicoeur-Martineau, The relativistic discriminator (2018); Huang et al., The GAN is
dead; long live the GAN! (R3GAN, 2024): their pairing loss converges locally with both penalties, so no other method
of stabilisation is used. Penalties are computed in single precision or better, at any precision of training.

Shapes: B batch, S axes of one example as input of the critic (models/space.py), N noise numbers.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.models.augment import Augment
from remint.models.contract import Batch, Model, Phase
from remint.models.space import CriticSpace
from remint.settings.recipe import CriticSettings, Loss

PENALTY_RAMP = 0.7  # fraction of the steps over which the penalty's weight and beta2 change from first to last value


def relativistic(winner_B: Tensor, loser_B: Tensor) -> Tensor:
    """Return the mean of softplus(loser - winner): the loss of the side whose score is ``winner``."""
    return F.softplus(loser_B - winner_B).mean()


def critic_loss(loss: Loss, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Return the critic's loss, without penalties, from its scores of real and drawn examples."""
    if loss == "relativistic":
        return relativistic(real_B, fake_B)
    if loss == "wgan_gp":
        return fake_B.mean() - real_B.mean()
    return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()


def generator_loss(loss: Loss, real_B: Tensor | None, fake_B: Tensor) -> Tensor:
    """Return the generator's loss. Only the relativistic loss needs scores of real examples."""
    if loss == "relativistic":
        assert real_B is not None
        return relativistic(fake_B, real_B)
    if loss == "minimax":
        return -F.softplus(fake_B).mean()
    return F.softplus(-fake_B).mean() if loss == "non_saturating" else -fake_B.mean()


def squared_gradients(score_B: Tensor, x_BS: Tensor) -> Tensor:
    """Return |d score_i / d x_i|^2, shape (B,), differentiable. The mean is R1 for real examples, R2 for drawn ones.

    ``score_B`` must have been computed from ``x_BS``.
    """
    (gradient_BS,) = torch.autograd.grad(score_B.sum(), x_BS, create_graph=True)
    return gradient_BS.flatten(1).square().sum(1)


def lipschitz_penalty(score_B: Tensor, x_BS: Tensor) -> Tensor:
    """Return the batch mean of (|d score_i / d x_i| - 1)^2. Its own gradient at a slope of 0 is taken as 0."""
    (gradient_BS,) = torch.autograd.grad(score_B.sum(), x_BS, create_graph=True)
    slope_B: Tensor = torch.linalg.vector_norm(gradient_BS.flatten(1), dim=1)
    return (slope_B - 1.0).square().mean()


def ramp(first: float, last: float, progress: float) -> float:
    """Interpolate linearly from ``first`` to ``last`` over the first 70% of the steps."""
    return first + min(1.0, progress / PENALTY_RAMP) * (last - first)


class AdversarialGenerator(Model):
    """Generator of the game: ``forward(noise_BN, y_B)`` returns examples as input of the critic, shape (B, S)."""

    space: CriticSpace
    sample_noise: int


class AdversarialPhase(Phase):
    """Common part of the phases of critic and generator."""

    def __init__(self, settings: CriticSettings) -> None:
        super().__init__()
        self.settings = settings
        self.schedule(0.0)

    def schedule(self, progress: float) -> None:
        first, last = self.settings.beta2, self.settings.beta2_final
        self.betas = (self.settings.beta1, first if last is None else ramp(first, last, progress))


class CriticPhase(AdversarialPhase):
    """Phase that trains the critic. The penalty is lazy: added on every n-th step, with n times its weight."""

    name: ClassVar[str] = "critic"
    compilable: ClassVar[bool] = False
    generator: AdversarialGenerator

    def __init__(self, critic: nn.Module, generator: AdversarialGenerator, augment: Augment, settings: CriticSettings) -> None:
        super().__init__(settings)
        self.critic = critic
        self.augment = augment
        self.reference_frozen(generator=generator)
        self.learning_rate = settings.critic_learning_rate
        self.sizes = [generator.sample_noise, augment.noise_size, augment.noise_size, int(settings.loss == "wgan_gp")]
        self.noise_size = sum(self.sizes)

    def trained_critic(self) -> nn.Module:
        return self.critic

    def penalty_weight(self, progress: float) -> float:
        """Interpolate linearly from ``penalty`` to ``penalty_final``."""
        return ramp(self.settings.penalty, self.settings.penalty_final, progress)

    def forward(self, batch: Batch) -> Tensor:
        noise_BN, real_noise_BN, fake_noise_BN, share_B1 = torch.split(batch.noise_BN, self.sizes, dim=1)
        with torch.no_grad():
            real_BS = self.augment(self.generator.space.encode(batch.x_BX), real_noise_BN)
            fake_BS = self.augment(self.generator(noise_BN, batch.y_B).to(real_BS.dtype), fake_noise_BN)
        weight = self.penalty_weight(batch.progress)
        penalised = weight > 0.0 and batch.step % self.settings.penalty_every == 0
        with torch.autocast(real_BS.device.type, enabled=False) if penalised else nullcontext():
            both_BS = torch.cat([real_BS, fake_BS]).requires_grad_(penalised)
            score_B = self.critic(both_BS, None if batch.y_B is None else batch.y_B.repeat(2))
            loss = critic_loss(self.settings.loss, *score_B.chunk(2))
            if self.settings.augment and self.training:
                self.augment.adapt(*score_B.chunk(2))
                self.metrics.update(augment=self.augment.probability.clone())
            if not penalised:
                return loss
            lazy_weight = self.settings.penalty_every * weight
            if self.settings.loss == "wgan_gp":
                return loss + lazy_weight * self._lipschitz(real_BS, fake_BS, share_B1, batch.y_B)
            real_B, fake_B = squared_gradients(score_B, both_BS).chunk(2)
            r1, r2 = real_B.mean(), fake_B.mean()
            self.metrics.update(r1=r1.detach(), r2=r2.detach())
            return loss + 0.5 * lazy_weight * (r1 + r2)

    def _lipschitz(self, real_BS: Tensor, fake_BS: Tensor, share_B1: Tensor, y_B: Tensor | None) -> Tensor:
        share_BS = torch.special.ndtr(share_B1).view(-1, *[1] * (real_BS.dim() - 1))
        mixed_BS = (share_BS * real_BS + (1.0 - share_BS) * fake_BS).requires_grad_(True)
        penalty = lipschitz_penalty(self.critic(mixed_BS, y_B), mixed_BS)
        self.metrics.update(lipschitz=penalty.detach())
        return penalty


class GeneratorPhase(AdversarialPhase):
    """Phase that trains the generator against the current critic."""

    name: ClassVar[str] = "generator"
    critic: nn.Module  # maps (B, S) and the classes to scores (B,)

    def __init__(self, generator: AdversarialGenerator, critic: nn.Module, augment: Augment, settings: CriticSettings) -> None:
        super().__init__(settings)
        self.generator = generator
        self.augment = augment
        self.reference_frozen(critic=critic)
        real = augment.noise_size if settings.loss == "relativistic" else 0
        self.sizes = [generator.sample_noise, augment.noise_size, real]
        self.noise_size = sum(self.sizes)

    def forward(self, batch: Batch) -> Tensor:
        noise_BN, fake_noise_BN, real_noise_BN = torch.split(batch.noise_BN, self.sizes, dim=1)
        real_B = None
        if self.settings.loss == "relativistic":
            with torch.no_grad():
                real_B = self.critic(self.augment(self.generator.space.encode(batch.x_BX), real_noise_BN), batch.y_B)
        fake_BS = self.augment(self.generator(noise_BN, batch.y_B), fake_noise_BN)
        return generator_loss(self.settings.loss, real_B, self.critic(fake_BS, batch.y_B))
