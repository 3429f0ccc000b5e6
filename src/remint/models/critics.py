"""Networks of a generative adversarial game, by name. Generator and critic use the same kind.

    mlp           hidden layers with ReLU
    residual_mlp  residual blocks of dense layers: h + W2 act(W1 h)
    dcgan         strided convolutions (Radford et al., Unsupervised representation learning with deep convolutional
                  generative adversarial networks, 2016), with GroupNorm instead of BatchNorm in the generator and no
                  normalisation in the critic: its score of an example must not depend on other examples
    residual      convolutional residual trunks without normalisation (models/convolutional.py)

Shapes: B batch, S axes of one example (models/space.py), D numbers of one example, F features, K classes, W frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.convolutional import (
    EXPANSION,
    GAINS,
    DownsamplingNetwork,
    Size,
    UpsamplingNetwork,
    initialised,
    stages,
    widths,
)
from remint.models.labels import Labels
from remint.models.layers import at_least_single, mlp
from remint.models.space import CriticSpace
from remint.settings.recipe import CriticSettings

DENSE = ("mlp", "residual_mlp")  # networks whose input is one row of numbers per example
LEAK = 0.2
NORM_GROUPS = 8  # most groups of channels in one map


class ResidualMlp(nn.Module):
    """Residual blocks of dense layers, (B, D) to (B, F), without normalisation. At initialisation each block is the identity."""

    def __init__(self, in_features: int, hidden: int, out_features: int, blocks: int) -> None:
        super().__init__()
        self.first = initialised(nn.Linear(in_features, hidden), 1.0)
        self.branches = nn.ModuleList(
            nn.Sequential(
                initialised(nn.Linear(hidden, EXPANSION * hidden), blocks**-0.5),
                nn.LeakyReLU(LEAK),
                initialised(nn.Linear(EXPANSION * hidden, hidden), 0.0),
            )
            for _ in range(blocks)
        )
        self.last = initialised(nn.Linear(hidden, out_features), 1.0)

    def forward(self, x_BD: Tensor) -> Tensor:
        h_BF: Tensor = self.first(x_BD)
        for branch in self.branches:
            h_BF = h_BF + branch(h_BF)
        y_BF: Tensor = self.last(h_BF)
        return y_BF


def generator_network(settings: CriticSettings, in_features: int, space: CriticSpace) -> nn.Module:
    """Return a network from (B, ``in_features``) to (B, S). Raises SettingsError if the network cannot draw such data."""
    if settings.network in DENSE:
        return nn.Sequential(_dense(settings, in_features, math.prod(space.shape)), nn.Unflatten(1, space.shape))
    channels, size = _image_shape(settings, space)
    if settings.network == "residual":
        return UpsamplingNetwork(in_features, settings.width, settings.blocks, channels, size, dilation=settings.dilation)
    return _dcgan_generator(in_features, settings.width, channels, size)


def critic_network(settings: CriticSettings, space: CriticSpace, extra_features: int, out_features: int) -> nn.Module:
    """Return a network from (B, S), or from (B, D + ``extra_features``) if it is dense, to (B, ``out_features``).

    Raises SettingsError if the network cannot take such data.
    """
    if settings.network in DENSE:
        return _dense(settings, math.prod(space.shape) + extra_features, out_features)
    channels, size = _image_shape(settings, space)
    if settings.network == "residual":
        return DownsamplingNetwork(channels, size, settings.width, settings.blocks, out_features, dilation=settings.dilation)
    return _dcgan_critic(channels, size, settings.width, out_features)


class Critic(nn.Module):
    """Critic D: one score per example. A relativistic loss uses only differences of scores.

    A conditional critic has 1 + K outputs, and the score is the first plus that of the class: a projection (Miyato &
    Koyama, cGANs with projection discriminator, 2018). In few dimensions a network learns high frequencies slowly:
    ``fourier`` frequencies W append sin(x W) and cos(x W) to its input (Tancik et al., Fourier features let networks
    learn high frequency functions in low dimensional domains, 2020).
    """

    frequencies_DW: Tensor

    def __init__(self, settings: CriticSettings, space: CriticSpace, labels: Labels) -> None:
        """Build the critic. Raises SettingsError if the network cannot take such data."""
        super().__init__()
        self.classes = labels.width
        self.fourier = settings.fourier
        dims, out_features = math.prod(space.shape), 1 + labels.width
        if self.fourier:
            if not space.spec.is_table or settings.network not in DENSE:
                raise SettingsError("model.fourier needs a table and network: mlp or residual_mlp: remove it")
            self.register_buffer("frequencies_DW", settings.fourier_scale * torch.randn(dims, self.fourier))
        self.is_dense = settings.network in DENSE
        self.net = critic_network(settings, space, 2 * self.fourier, out_features)

    def forward(self, x_BS: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the scores, shape (B,)."""
        score_BK = at_least_single(self.net(self._with_fourier_features(x_BS.flatten(1)) if self.is_dense else x_BS))
        if not self.classes:
            return score_BK.squeeze(1)
        assert y_B is not None, "a conditional critic needs the class"
        one_hot_BK = F.one_hot(y_B, self.classes).to(score_BK.dtype)
        return score_BK[:, 0] + (score_BK[:, 1:] * one_hot_BK).sum(1)

    def _with_fourier_features(self, x_BD: Tensor) -> Tensor:
        if not self.fourier:
            return x_BD
        with torch.autocast(x_BD.device.type, enabled=False):  # half precision loses the phase of a wave
            waves_BW = at_least_single(x_BD) @ self.frequencies_DW
        return torch.cat([x_BD, waves_BW.sin(), waves_BW.cos()], dim=1)


def _dense(settings: CriticSettings, in_features: int, out_features: int) -> nn.Module:
    if settings.network == "residual_mlp":
        return ResidualMlp(in_features, settings.hidden, out_features, settings.layers)
    return mlp([in_features, *[settings.hidden] * settings.layers, out_features], nn.ReLU)


def _image_shape(settings: CriticSettings, space: CriticSpace) -> tuple[int, Size]:
    """Return channels and size of the images. Raises SettingsError if the data are a table."""
    if space.spec.is_table:
        raise SettingsError(
            f"model.network: {settings.network} needs images, but this dataset is a table: use mlp or residual_mlp"
        )
    channels, height, width = space.spec.image
    return channels, (height, width)


def _dcgan_sizes(size: Size) -> list[Size]:
    sizes = stages(size)
    if len(sizes) == 1:
        raise SettingsError(
            f"model.network: dcgan halves its maps, but {size[0]} x {size[1]} cannot be halved: use mlp or residual_mlp"
        )
    return sizes


def _dcgan_generator(in_features: int, width: int, channels: int, size: Size) -> nn.Module:
    sizes = _dcgan_sizes(size)
    stage_channels = widths(width, len(sizes) - 1)[::-1]
    height, map_width = sizes[-1]
    layers: list[nn.Module] = [initialised(nn.Linear(in_features, stage_channels[0] * height * map_width), 1.0)]
    layers.append(nn.Unflatten(1, (stage_channels[0], height, map_width)))
    for own, following in zip(stage_channels, [*stage_channels[1:], channels], strict=True):
        layers += [nn.GroupNorm(math.gcd(own, NORM_GROUPS), own), nn.ReLU()]
        layers.append(initialised(nn.ConvTranspose2d(own, following, 4, stride=2, padding=1), 1.0))
    return nn.Sequential(*layers)


def _dcgan_critic(channels: int, size: Size, width: int, out_features: int) -> nn.Module:
    sizes = _dcgan_sizes(size)
    stage_channels = widths(width, len(sizes) - 1)
    layers: list[nn.Module] = []
    for before, own in zip([channels, *stage_channels], stage_channels, strict=False):
        gain = GAINS["leaky_relu"] if layers else 1.0
        layers += [initialised(nn.Conv2d(before, own, 4, stride=2, padding=1), gain), nn.LeakyReLU(LEAK)]
    height, map_width = sizes[-1]
    return nn.Sequential(
        *layers, nn.Flatten(), initialised(nn.Linear(stage_channels[-1] * height * map_width, out_features), 1.0)
    )
