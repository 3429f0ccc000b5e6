"""Residual convolutional trunks without normalisation, shared by the families.

    block(h) = h + W3 act(W2 * act(W1 h))     1x1, grouped 3x3, 1x1; twice as many channels inside

Huang et al., The GAN is dead; long live the GAN! (R3GAN, 2024). Without normalisation, examples of a batch are independent,
and a gradient penalty applies to one example. The initialisation controls the variance: the last layer of a branch is zero
and the others are scaled by the number of branches (Zhang et al., Fixup initialization, 2019). Between stages, maps are
resampled bilinearly, by sums in one order on every device. ``dilation`` spreads the taps of the 3x3 convolutions, and
doubles from block to block of a stage (Yu & Koltun, Multi-scale context aggregation by dilated convolutions, 2016).

Shapes: B batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from remint.errors import SettingsError
from remint.models.layers import Dropout

Activation = Literal["leaky_relu", "silu"]
Size = tuple[int, int]  # H, W
Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"leaky_relu": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU}
GAINS: dict[Activation, float] = {"leaky_relu": math.sqrt(2.0 / 1.04), "silu": 1.677}  # 1 / rms of act(standard normal)
EXPANSION = 2  # channels inside a block, relative to those outside
GROUP = 16  # channels per group of the 3x3 convolution
COARSEST = 8  # largest side of the map that is flattened
WIDEST = 4  # most channels of a coarse map, relative to the finest


def stages(size: Size) -> list[Size]:
    """Return the sizes of the maps, finest to coarsest: halved while both sides are even and remain at least 4.

    Raises SettingsError if the coarsest is larger than 8 x 8.
    """
    height, width = size
    sizes = [size]
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
        sizes.append((height, width))
    if max(height, width) > COARSEST:
        raise SettingsError(
            f"a convolutional network halves its maps to at most 8 x 8, but {size[0]} x {size[1]} stops at "
            f"{height} x {width}: set datasets.NAME.resize.size to sides such as 8, 16, 28, 32 or 64, or use network: mlp"
        )
    return sizes


def widths(width: int, count: int) -> list[int]:
    """Return the channels of ``count`` stages from the finest: ``width``, doubled at each stage, at most four times as many."""
    return [width * min(2**stage, WIDEST) for stage in range(count)]


def downsample(x_BCHW: Tensor) -> Tensor:
    """Halve height and width bilinearly: means of 2 x 2."""
    b, c, h, w = x_BCHW.shape
    return x_BCHW.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def upsample(x_BCHW: Tensor) -> Tensor:
    """Double height and width bilinearly; the edge is repeated.

    Equal to ``interpolate(scale_factor=2, mode="bilinear")``, whose backward pass on CUDA has no fixed order.
    """
    for dim in (2, 3):
        size = x_BCHW.shape[dim]
        before = torch.cat([x_BCHW.narrow(dim, 0, 1), x_BCHW.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([x_BCHW.narrow(dim, 1, size - 1), x_BCHW.narrow(dim, size - 1, 1)], dim)
        pair = torch.stack([0.75 * x_BCHW + 0.25 * before, 0.75 * x_BCHW + 0.25 * after], dim + 1)
        x_BCHW = pair.flatten(dim, dim + 1)
    return x_BCHW


class Block(nn.Module):
    """Residual block of C channels; at initialisation the identity. ``branches``: number of blocks in the whole trunk."""

    def __init__(self, channels: int, rate: int, branches: int, activation: Activation, dropout: float = 0.0) -> None:
        super().__init__()
        inside = EXPANSION * channels
        groups = inside // math.gcd(inside, GROUP)
        layers: list[nn.Module] = [
            initialised(nn.Conv2d(channels, inside, 1), branches**-0.25),
            ACTIVATIONS[activation](),
            initialised(
                nn.Conv2d(inside, inside, 3, padding=rate, dilation=rate, groups=groups), GAINS[activation] * branches**-0.25
            ),
            ACTIVATIONS[activation](),
            initialised(nn.Conv2d(inside, channels, 1), 0.0),
        ]
        if dropout:
            layers.insert(4, Dropout(dropout))
        self.branch = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        residual: Tensor = self.branch(x_BCHW)
        return x_BCHW + residual


def dilation_rates(blocks: int, dilation: int, size: Size | None = None) -> list[int]:
    """Return the distance of the taps in each block of a stage: 1, 2, 4, .. at most ``dilation`` and half of the map's side."""
    greatest = dilation if size is None else max(1, min(dilation, min(size) // 2))
    return [min(2**block, greatest) for block in range(blocks)]


class DownsamplingNetwork(nn.Module):
    """Network from images, (B, C, H, W), and ``extra_features`` features, (B, F), to (B, ``out_features``)."""

    def __init__(
        self,
        channels: int,
        size: Size,
        width: int,  # channels of the finest map
        blocks: int,  # of each stage
        out_features: int,
        *,
        extra_features: int = 0,  # F: features that come with the image
        dilation: int = 1,  # greatest
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        """Build the network. Raises SettingsError as ``stages`` does."""
        super().__init__()
        sizes = stages(size)
        stage_channels = widths(width, len(sizes))
        branches = blocks * len(sizes)
        self.stem = Stem(channels, stage_channels[0], extra_features)
        self.stages = nn.ModuleList()
        self.changes = nn.ModuleList()  # of channels, after a map is halved
        for stage, (own, at) in enumerate(zip(stage_channels, sizes, strict=True)):
            if stage:
                self.changes.append(_match_channels(stage_channels[stage - 1], own))
            rates = dilation_rates(blocks, dilation, at)
            self.stages.append(nn.Sequential(*(Block(own, rate, branches, activation, dropout) for rate in rates)))
        self.last = initialised(nn.Linear(stage_channels[-1] * math.prod(sizes[-1]), out_features), 1.0)

    def forward(self, x_BCHW: Tensor, extra_BF: Tensor | None = None) -> Tensor:
        h_BCHW = self.stages[0](self.stem(x_BCHW, extra_BF))
        for change, stage in zip(self.changes, self.stages[1:], strict=True):
            h_BCHW = stage(change(downsample(h_BCHW)))
        features_BF: Tensor = self.last(h_BCHW.flatten(1))
        return features_BF


class UpsamplingNetwork(nn.Module):
    """Network from features, (B, ``in_features``), to maps of an image's size, (B, C, H, W)."""

    def __init__(
        self,
        in_features: int,
        width: int,  # channels of the finest map
        blocks: int,  # of each stage
        channels: int,
        size: Size,
        *,
        dilation: int = 1,  # greatest
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        """Build the network. Raises SettingsError as ``stages`` does."""
        super().__init__()
        sizes = stages(size)[::-1]
        stage_channels = widths(width, len(sizes))[::-1]
        branches = blocks * len(sizes)
        self.first_map = (stage_channels[0], *sizes[0])
        self.first = initialised(nn.Linear(in_features, math.prod(self.first_map)), 1.0)
        self.stages = nn.ModuleList()
        self.changes = nn.ModuleList()  # of channels, after a map is doubled
        for stage, (own, at) in enumerate(zip(stage_channels, sizes, strict=True)):
            if stage:
                self.changes.append(_match_channels(stage_channels[stage - 1], own))
            rates = dilation_rates(blocks, dilation, at)
            self.stages.append(nn.Sequential(*(Block(own, rate, branches, activation, dropout) for rate in rates)))
        self.last = initialised(nn.Conv2d(stage_channels[-1], channels, 1), 1.0)

    def forward(self, features_BF: Tensor) -> Tensor:
        h_BCHW = self.stages[0](self.first(features_BF).view(-1, *self.first_map))
        for change, stage in zip(self.changes, self.stages[1:], strict=True):
            h_BCHW = stage(change(upsample(h_BCHW)))
        x_BCHW: Tensor = self.last(h_BCHW)
        return x_BCHW


class SameSizeNetwork(nn.Module):
    """Network from map to map of the same height and width, of any size; with ``zero`` the output is 0 at initialisation."""

    def __init__(
        self,
        channels_in: int,
        width: int,  # channels of every block
        channels_out: int,
        blocks: int,
        *,
        extra_features: int = 0,  # F: features that come with the map
        dilation: int = 1,  # greatest
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Stem(channels_in, width, extra_features)
        self.blocks = nn.Sequential(
            *(Block(width, rate, blocks, activation, dropout) for rate in dilation_rates(blocks, dilation))
        )
        self.last = initialised(nn.Conv2d(width, channels_out, 1), 0.0 if zero else 1.0)

    def forward(self, x_BCHW: Tensor, extra_BF: Tensor | None = None) -> Tensor:
        y_BCHW: Tensor = self.last(self.blocks(self.stem(x_BCHW, extra_BF)))
        return y_BCHW


class UNetwork(nn.Module):
    """Network from map to map of the same shape, which sees it at all sizes of ``stages``; the output is 0 at initialisation.

    On the way up each map is added to the one of its size on the way down (Ronneberger et al., U-Net, 2015).
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        width: int,  # channels of the finest map
        blocks: int,  # of each stage, on each way
        *,
        extra_features: int = 0,  # F: features that come with the map
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        """Build the network. Raises SettingsError as ``stages`` does."""
        super().__init__()
        sizes = stages(size)
        stage_channels = widths(width, len(sizes))
        branches = blocks * (2 * len(sizes) - 1)

        def stage(own: int) -> nn.Sequential:
            return nn.Sequential(*(Block(own, 1, branches, activation, dropout) for _ in range(blocks)))

        self.stem = Stem(channels, stage_channels[0], extra_features)
        self.down = nn.ModuleList(stage(own) for own in stage_channels)
        self.narrower = nn.ModuleList(_match_channels(*pair) for pair in itertools.pairwise(stage_channels))
        self.wider = nn.ModuleList(_match_channels(*pair) for pair in itertools.pairwise(stage_channels[::-1]))
        self.up = nn.ModuleList(stage(own) for own in stage_channels[-2::-1])
        self.last = initialised(nn.Conv2d(stage_channels[0], channels, 1), 0.0)

    def forward(self, x_BCHW: Tensor, extra_BF: Tensor | None = None) -> Tensor:
        h_BCHW = self.down[0](self.stem(x_BCHW, extra_BF))
        finer = []
        for change, stage in zip(self.narrower, self.down[1:], strict=True):
            finer.append(h_BCHW)
            h_BCHW = stage(change(downsample(h_BCHW)))
        for change, stage, beside_BCHW in zip(self.wider, self.up, reversed(finer), strict=True):
            h_BCHW = stage(upsample(change(h_BCHW)) + beside_BCHW)
        y_BCHW: Tensor = self.last(h_BCHW)
        return y_BCHW


class Stem(nn.Module):
    """1x1 convolution from a map's channels to a trunk's; additional features are projected and added at each position."""

    def __init__(self, channels_in: int, channels_out: int, extra_features: int) -> None:
        super().__init__()
        self.map = initialised(nn.Conv2d(channels_in, channels_out, 1), 1.0)
        # The name beside is part of stored weights.
        self.beside = initialised(nn.Linear(extra_features, channels_out, bias=False), 1.0) if extra_features else None

    def forward(self, x_BCHW: Tensor, extra_BF: Tensor | None) -> Tensor:
        h_BCHW: Tensor = self.map(x_BCHW)
        if self.beside is not None:
            h_BCHW = h_BCHW + self.beside(extra_BF)[:, :, None, None]
        return h_BCHW


def _match_channels(channels_in: int, channels_out: int) -> nn.Module:
    """Return a 1x1 convolution if the number of channels changes, else the identity."""
    if channels_in == channels_out:
        return nn.Identity()
    return initialised(nn.Conv2d(channels_in, channels_out, 1, bias=False), 1.0)


def initialised(layer: Layer, gain: float) -> Layer:
    """Return the layer with normal weights of standard deviation gain / sqrt(fan in), and biases of 0."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
