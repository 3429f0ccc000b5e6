"""Relativistic pairing GAN with zero-centred gradient penalties on real and fake.

    critic:     mean softplus(D(G(z)) - D(x)) + weight / 2 (R1 + R2)
    generator:  mean softplus(D(x) - D(G(z)))
    R1 = mean |grad_x D(x)|^2 over real x,  R2 = the same over G(z)

Huang et al., The GAN is dead; long live the GAN! A modern GAN baseline (R3GAN, 2024); the loss is that of
Jolicoeur-Martineau, The relativistic discriminator (2018). It converges locally with both penalties, so there is
nothing else to hold it stable. The model that is served is the generator; the critic lives in the phases.

Shapes: B batch, C channels, H height, W width, D = C H W dimensions, Z latent, N noise numbers.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.models.contract import Batch, Model, Phase
from remint.models.layers import at_least_single, mlp, to_levels, to_unit
from remint.recipe import GanSettings
from remint.records import DataSpec

PENALTY_RAMP = 0.7  # share of the steps over which the penalty's weight goes from its first to its last value


class Generator(Model):
    """CanSample (models/contract.py)."""

    def __init__(self, settings: GanSettings, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.sample_noise = settings.latent
        self.net = mlp([settings.latent, *[settings.hidden] * settings.layers, spec.dims], nn.ReLU)

    def forward(self, noise_BN: Tensor) -> Tensor:
        """Images before rounding, in [-1, 1], shape (B, D)."""
        image_BD: Tensor = self.net(noise_BN)
        return image_BD.tanh()

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return to_levels(self(noise_BN), self.spec.levels).view(-1, *self.spec.shape)


class Critic(nn.Module):
    """D: one number an image, of which only differences have a meaning."""

    def __init__(self, settings: GanSettings, spec: DataSpec) -> None:
        super().__init__()
        self.net = mlp([spec.dims, *[settings.hidden] * settings.layers, 1], nn.ReLU)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Shape (B,)."""
        return at_least_single(self.net(x_BD)).squeeze(1)


def relativistic(winner_B: Tensor, loser_B: Tensor) -> Tensor:
    """Mean of softplus(loser - winner): what the side that wants ``winner`` to be the greater descends."""
    return F.softplus(loser_B - winner_B).mean()


def gradient_penalty(score_B: Tensor, x_BD: Tensor) -> Tensor:
    """Mean over the batch of |d score_i / d x_i|^2, differentiable again. ``score_B`` was computed from ``x_BD``."""
    (gradient_BD,) = torch.autograd.grad(score_B.sum(), x_BD, create_graph=True)
    return gradient_BD.square().sum(1).mean()


class CriticPhase(Phase):
    """Trains the critic. The penalties are lazy: on every n-th step, n times their weight, in single precision."""

    name: ClassVar[str] = "critic"
    generator: Generator

    def __init__(self, critic: Critic, generator: Generator, settings: GanSettings) -> None:
        super().__init__()
        self.critic = critic
        self.look_through(generator=generator)
        self.settings = settings
        self.levels = generator.spec.levels
        self.noise_size = generator.sample_noise
        self.learning_rate = settings.critic_learning_rate
        self.betas = (0.0, 0.99)
        self._curves: dict[str, Tensor] = {}

    def penalty_weight(self, progress: float) -> float:
        """From ``penalty`` to ``penalty_final`` in a straight line."""
        ramp = min(1.0, progress / PENALTY_RAMP)
        return self.settings.penalty + ramp * (self.settings.penalty_final - self.settings.penalty)

    def forward(self, batch: Batch) -> Tensor:
        real_BD = to_unit(batch.x_BX.flatten(1), self.levels)
        with torch.no_grad():
            fake_BD = self.generator(batch.noise_BN).to(real_BD.dtype)
        penalised = batch.step % self.settings.penalty_every == 0
        real_BD.requires_grad_(penalised)
        fake_BD.requires_grad_(penalised)
        with torch.autocast(real_BD.device.type, enabled=False) if penalised else nullcontext():
            real_B, fake_B = self.critic(real_BD), self.critic(fake_BD)
            loss = relativistic(real_B, fake_B)
            if penalised:
                r1, r2 = gradient_penalty(real_B, real_BD), gradient_penalty(fake_B, fake_BD)
                self._curves.update(r1=r1.detach(), r2=r2.detach())
                loss = loss + 0.5 * self.settings.penalty_every * self.penalty_weight(batch.progress) * (r1 + r2)
        return loss

    def curves(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._curves.items()}


class GeneratorPhase(Phase):
    """Trains the generator against the critic as it now is."""

    name: ClassVar[str] = "generator"
    critic: Critic

    def __init__(self, generator: Generator, critic: Critic) -> None:
        super().__init__()
        self.generator = generator
        self.look_through(critic=critic)
        self.levels = generator.spec.levels
        self.noise_size = generator.sample_noise
        self.betas = (0.0, 0.99)

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            real_B = self.critic(to_unit(batch.x_BX.flatten(1), self.levels))
        return relativistic(self.critic(self.generator(batch.noise_BN)), real_B)


def build(settings: GanSettings, spec: DataSpec) -> Generator:
    return Generator(settings, spec)


def phases(model: Generator, settings: GanSettings) -> list[Phase]:
    critic = Critic(settings, model.spec)
    return [CriticPhase(critic, model, settings), GeneratorPhase(model, critic)]
