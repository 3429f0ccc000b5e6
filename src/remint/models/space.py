"""Examples as a critic sees them, and back: differentiable on the generator's side.

    an image       levels as numbers in [-1, 1], shape (C, H, W); drawn ones leave through a tanh
    a table's row  numeric columns as they are, a categorical column of k categories as k numbers: one-hot where the row is
                   real; where it is drawn, softmax((logits + g) / t) with g of the Gumbel distribution

The largest of ``logits + g`` is a draw from softmax(logits), so what the critic judges is, but for its temperature t,
what is sampled, and the gradient reaches the logits (Jang et al., Categorical reparameterization with Gumbel-softmax,
2017; Maddison et al., The concrete distribution, 2017). Without g one could only reach a category that z decides.

Shapes: B batch, X axes of one example of the data, S axes of one as the critic sees it, G categories of all columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.layers import at_least_single, to_levels, to_unit
from remint.records import DataSpec

TEMPERATURE = 0.5  # t: lower is nearer to one-hot, with noisier gradients; 0.2 learnt a table of three categories less well
TINY = 1e-12


class CriticSpace:
    """Maps between examples and what the critic sees of them."""

    def __init__(self, spec: DataSpec) -> None:
        """Raises SettingsError where a column may be missing values."""
        missing = [column.name for column in spec.columns if column.missing]
        if missing:
            raise SettingsError(
                f"a critic cannot learn from missing values, and {', '.join(missing)} of this table may be missing: "
                "take family: vae, which can, or leave these columns or rows out of the source"
            )
        self.spec = spec
        self.widths = [max(1, len(column.categories)) for column in spec.columns]  # numbers of each column
        self.shape: tuple[int, ...] = (sum(self.widths),) if spec.is_table else spec.shape
        self.noise_size = sum(len(column.categories) for column in spec.columns)  # G: numbers that draw the categories

    def encode(self, x_BX: Tensor) -> Tensor:
        """Shape (B, S) of floating point examples of the data."""
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
        """A network's output, of the same shape, as an example that the critic may take for a real one."""
        out_BS = at_least_single(out_BS)
        if not self.spec.is_table:
            return out_BS.tanh()
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
        """The example of the data that ``x_BS`` stands for: nearest levels, likeliest categories."""
        if not self.spec.is_table:
            return to_levels(x_BS, self.spec.levels)
        parts = [
            part_BS if column.numeric else part_BS.argmax(1, keepdim=True)
            for part_BS, column in zip(torch.split(x_BS, self.widths, dim=1), self.spec.columns, strict=True)
        ]
        return torch.cat([part.float() for part in parts], dim=1)
