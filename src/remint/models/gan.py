"""Generative adversarial network: a generator trained against a critic (models/adversarial.py). Only the generator is served.

    z ~ N(0, I)    x = G(z)

Goodfellow et al., Generative adversarial nets (2014); by default the pairing loss and both zero-centred gradient
penalties of Huang et al., R3GAN (2024). A conditional generator takes z and the class; its critic takes the class by projection.

Shapes: B batch, X axes of one example of the data, S axes of one as input of the critic, Z latent, N noise numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remint.models.adversarial import AdversarialGenerator, CriticPhase, GeneratorPhase
from remint.models.augment import Augment
from remint.models.contract import Phase
from remint.models.critics import Critic, generator_network
from remint.models.inversion import invert
from remint.models.labels import Labels
from remint.models.space import CriticSpace
from remint.records import DataSpec
from remint.settings.recipe import GanSettings


class Generator(AdversarialGenerator):
    """Generator: CanSample and HasLatent (models/contract.py).

    Its noise: z, then numbers that draw the categories of a row, and the class.
    """

    encodes_by_search = True

    def __init__(self, settings: GanSettings, spec: DataSpec) -> None:
        """Build the generator. Raises SettingsError if the network cannot draw such data."""
        super().__init__()
        self.conditional = settings.conditional
        self.space = CriticSpace(spec)
        self.labels = Labels(settings.conditional, spec)
        self.latent_size = settings.latent
        self.sizes = [settings.latent, self.space.noise_size]
        self.sample_noise = sum(self.sizes) + self.labels.noise_size
        self.net = generator_network(settings, settings.latent + self.labels.width, self.space)

    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        self.labels.fit(y_N)

    def forward(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return examples as input of the critic, shape (B, S)."""
        noise_BN, y_B = self.labels.split_noise(noise_BN, y_B)
        z_BZ, categories_BG = torch.split(noise_BN, self.sizes, dim=1)
        return self.space.from_network(self.net(self.labels.append_one_hot(z_BZ, y_B)), categories_BG)

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        return self.labels.split_noise(noise_BN, None)[1]

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the latents whose examples are nearest, by optimisation (models/inversion.py, with its cost), shape (B, Z)."""
        x_BS = self.space.encode(x_BX.to(next(self.parameters()).dtype))
        return invert(self._likeliest, x_BS, y_B if self.conditional else None, self.latent_size)

    def decode(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.space.decode(self._likeliest(z_BZ, y_B))

    def _likeliest(self, z_BZ: Tensor, y_B: Tensor | None) -> Tensor:
        """Return examples as input of the critic, with the likeliest category of each column."""
        equal_BG = z_BZ.new_zeros(z_BZ.shape[0], self.space.noise_size)
        return self.space.from_network(self.net(self.labels.append_one_hot(z_BZ, y_B)), equal_BG)

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.space.decode(self(noise_BN, y_B))


def build(settings: GanSettings, spec: DataSpec) -> Generator:
    return Generator(settings, spec)


def phases(model: Generator, settings: GanSettings) -> list[Phase]:
    critic = Critic(settings, model.space, model.labels)
    augment = Augment(settings, model.space.spec)
    return [CriticPhase(critic, model, augment, settings), GeneratorPhase(model, critic, augment, settings)]
