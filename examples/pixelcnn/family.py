"""Gated PixelCNN: exact likelihood of a discrete image, one value after another.

    log p(x) = sum over i of log p(x_i | x_0, ..., x_i-1)    each a categorical distribution over the levels

van den Oord et al., Conditional Image Generation with PixelCNN Decoders (2016). The order is row by row, from left to
right; the channels of a pixel are neighbouring columns, so that one order covers all values.

Shapes: B batch, N examples, C channels, H height, W width, V = W C columns, F features, L levels, X = C, H, W,
noise numbers are the second axis of ``noise_BN``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.contract import Batch, Model, Phase
from remint.models.labels import Labels
from remint.models.layers import Dropout, at_least_single, in_unit, running_sums, to_unit
from remint.records import DataSpec
from remint.settings.base import Positive
from remint.settings.recipe import ModelSettings


class Settings(ModelSettings):
    """Gated PixelCNN."""

    can: ClassVar[frozenset[str]] = frozenset({"sample", "log_prob"})

    hidden: Positive = 32  # features of each of the two stacks
    layers: Positive = 5
    reach: Positive = 1  # rows above and columns beside that one layer sees
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


class GatedLayer(nn.Module):
    """One layer of two stacks: the vertical one sees the rows above, the horizontal one also the values to the left.

    Together they see all earlier values and no others. Each masked convolution is written as a smaller one whose input is
    padded on the visible sides.
    """

    def __init__(self, settings: Settings, classes: int) -> None:
        super().__init__()
        hidden, self.reach = settings.hidden, settings.reach
        self.vertical = nn.Conv2d(hidden, 2 * hidden, (self.reach + 1, 2 * self.reach + 1))
        self.horizontal = nn.Conv2d(hidden, 2 * hidden, (1, self.reach + 1))
        self.across = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        self.out = nn.Sequential(Dropout(settings.dropout), nn.Conv2d(hidden, hidden, 1))
        self.given = nn.Linear(classes, 2 * hidden, bias=False) if classes else None

    def forward(self, above_BFHV: Tensor, left_BFHV: Tensor, one_hot_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        down = self.vertical(F.pad(above_BFHV, (self.reach, self.reach, self.reach, 0)))
        if self.given is not None and one_hot_BK is not None:
            down = down + self.given(one_hot_BK)[:, :, None, None]
        right = self.horizontal(F.pad(left_BFHV, (self.reach, 0, 0, 0))) + self.across(down)
        return gate(down), left_BFHV + self.out(gate(right))


def gate(x: Tensor) -> Tensor:
    """Return tanh of one half of the features times the logistic function of the other half."""
    value, openness = x.chunk(2, dim=1)
    return value.tanh() * openness.sigmoid()


class PixelCnn(Model):
    """The network. Implements CanSample and HasLogProb (models/contract.py)."""

    density_noise = 0  # the likelihood is of the discrete levels: no dequantisation
    log_share_LHV: Tensor

    def __init__(self, settings: Settings, spec: DataSpec) -> None:
        super().__init__()
        if spec.is_table:
            raise SettingsError("family 'pixelcnn' needs images, but this dataset is a table: use vae or flow")
        channels, height, width = spec.image
        self.spec, self.conditional = spec, settings.conditional
        self.labels = Labels(settings.conditional, spec)
        self.sample_noise = spec.dims + self.labels.noise_size
        self.inward = nn.Conv2d(2, settings.hidden, 1)
        self.layers = nn.ModuleList(GatedLayer(settings, self.labels.width) for _ in range(settings.layers))
        outward = nn.Conv2d(settings.hidden, settings.hidden, 1), nn.ReLU(), nn.Conv2d(settings.hidden, spec.levels, 1)
        self.outward = nn.Sequential(nn.ReLU(), *outward)
        self.register_buffer("log_share_LHV", torch.zeros(spec.levels, height, width * channels))

    @torch.no_grad()
    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        """Start from the frequency of each level at each place, with one count added (Laplace's rule)."""
        self.labels.fit(y_N)
        x_NHV = self._in_order(x_NX)
        count_LHV = torch.stack([(x_NHV == level).sum(0) for level in range(self.spec.levels)]) + 1
        self.log_share_LHV.copy_(count_LHV.double().log() - count_LHV.sum(0).double().log())

    def log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        x_BHV = self._in_order(x_BX)
        log_prob_BLHV = self._logits(x_BHV, y_B).log_softmax(1)
        return log_prob_BLHV.gather(1, x_BHV.long().unsqueeze(1)).sum((1, 2, 3))

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        return self.labels.split_noise(noise_BN, None)[1]

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Draw one value after another, by inverting its distribution function at Phi(noise)."""
        noise_BN, y_B = self.labels.split_noise(noise_BN, y_B)
        channels, height, width = self.spec.image
        share_BHV = torch.special.ndtr(noise_BN).view(-1, height, width * channels)
        x_BHV = torch.zeros_like(share_BHV)
        for row in range(height):
            for column in range(width * channels):
                logits_BL = self._logits(x_BHV[:, : row + 1], y_B)[:, :, row, column]  # later rows have no effect
                reached = running_sums(logits_BL.softmax(1)[:, :-1])
                x_BHV[:, row, column] = (share_BHV[:, row, column, None] >= reached).sum(1).to(x_BHV.dtype)
        return x_BHV.view(-1, height, width, channels).permute(0, 3, 1, 2).to(torch.uint8)

    def _in_order(self, x_BX: Tensor) -> Tensor:
        """Return the channels as columns, shape (B, H, V)."""
        return x_BX.permute(0, 2, 3, 1).flatten(2)

    def _logits(self, x_BHV: Tensor, y_B: Tensor | None) -> Tensor:
        """Return the logits of each level given the earlier values, shape (B, L, H, V); H may be the first rows only."""
        value_BHV = to_unit(x_BHV.to(self.inward.weight.dtype), self.spec.levels)
        seen = self.inward(torch.stack([value_BHV, torch.ones_like(value_BHV)], dim=1))  # ones tell levels from padding
        above, left = F.pad(seen, (0, 0, 1, -1)), F.pad(seen, (1, -1))  # shifted: no place sees its own value
        one_hot_BK = self.labels.one_hot(y_B, seen.dtype) if self.conditional else None
        for layer in self.layers:
            above, left = layer(above, left, one_hot_BK)
        return at_least_single(self.outward(left)) + self.log_share_LHV[:, : x_BHV.shape[1]]


class Likelihood(Phase):
    """Loss: minus the log likelihood in bits per dimension."""

    name: ClassVar[str] = "likelihood"

    def __init__(self, model: PixelCnn) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return -in_unit(self.model.log_prob(batch.x_BX, batch.noise_BN, batch.y_B).mean(), self.model.spec)


def build(settings: Settings, spec: DataSpec) -> PixelCnn:
    return PixelCnn(settings, spec)


def phases(model: PixelCnn, settings: Settings) -> list[Phase]:
    return [Likelihood(model)]
