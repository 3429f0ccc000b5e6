"""Map between examples and the critic's input, differentiable on the generator's side.

    an image       levels as numbers in [-1, 1], shape (C, H, W); the generator's output passes through tanh
    a table's row  numeric columns unchanged; whole numbers of a drawn row are rounded, and the gradient passes as if they were
                   not (Bengio et al., Estimating or propagating gradients, 2013); a categorical column with k categories as
                   k numbers: one-hot in a real row; softmax((logits + g) / t) in a drawn row, with g from the Gumbel
                   distribution

The largest of ``logits + g`` is a draw from softmax(logits). Apart from the temperature t, the critic therefore judges the
samples themselves, and the gradient reaches the logits (Jang et al., Categorical reparameterization with Gumbel-softmax,
2017; Maddison et al., The concrete distribution, 2017). Without g, z alone would decide the category.

Shapes: B batch, X axes of one example of the data, S axes of one as input of the critic, G categories of all columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.models.layers import at_least_single, to_levels, to_unit
from remint.models.whole_numbers import WholeNumbers
from remint.records import Column, DataSpec

TEMPERATURE = 0.5  # t: lower is nearer to one-hot, with noisier gradients; 0.2 was worse on a table of three categories
TINY = 1e-12


class CriticSpace(nn.Module):
    """Map between examples and the critic's input. It has no weights."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.widths = [max(1, len(column.categories)) for column in spec.columns]  # numbers of each column
        self.shape: tuple[int, ...] = (sum(self.widths),) if spec.is_table else spec.shape
        self.noise_size = sum(len(column.categories) for column in spec.columns)  # G: numbers that draw the categories
        one_hot = Column(name="")  # one number of a category
        each = zip(spec.columns, self.widths, strict=True)
        self.whole = WholeNumbers(
            [part for column, width in each for part in ([one_hot] * width if column.categories else [column])]
        )

    def encode(self, x_BX: Tensor) -> Tensor:
        """Return the critic's input, shape (B, S), for examples in floating point."""
        if not self.spec.is_table:
            return to_unit(x_BX, self.spec.levels)
        if not self.noise_size:
            return x_BX
        parts = [
            x_B1 if column.numeric else F.one_hot(x_B1.squeeze(1).long(), width).to(x_BX.dtype)
            for x_B1, column, width in zip(torch.split(x_BX, 1, dim=1), self.spec.columns, self.widths, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def from_network(self, out_BS: Tensor, noise_BG: Tensor) -> Tensor:
        """Map a network's output to the critic's input, of the same shape."""
        out_BS = at_least_single(out_BS)
        if not self.spec.is_table:
            return out_BS.tanh()
        out_BS = out_BS + (self.whole.round(out_BS) - out_BS).detach() if self.whole.count else out_BS
        if not self.noise_size:
            return out_BS
        gumbel_BG = -(-torch.special.log_ndtr(noise_BG)).clamp_min(TINY).log()
        gumbel = iter(
            torch.split(gumbel_BG, [len(column.categories) for column in self.spec.columns if not column.numeric], dim=1)
        )
        parts = [
            part_BS if column.numeric else ((part_BS + next(gumbel)) / TEMPERATURE).softmax(1)
            for part_BS, column in zip(torch.split(out_BS, self.widths, dim=1), self.spec.columns, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def decode(self, x_BS: Tensor) -> Tensor:
        """Return the examples for ``x_BS``: nearest levels, likeliest categories."""
        if not self.spec.is_table:
            return to_levels(x_BS, self.spec.levels)
        parts = [
            part_BS if column.numeric else part_BS.argmax(1, keepdim=True)
            for part_BS, column in zip(torch.split(x_BS, self.widths, dim=1), self.spec.columns, strict=True)
        ]
        return torch.cat([part.float() for part in parts], dim=1)
