"""Uniform dequantisation: map data to real numbers for a flow, with the log-determinant, and back.

A discrete value x becomes v = x + u, with u = Phi(noise) uniform in (0, 1). The density of v integrates over [x, x + 1)
to the probability of x, and the mean over u of its log is a lower bound of the log of that probability
(Theis et al., A note on the evaluation of generative models, 2016). Then a fixed function maps v to z.

Shapes: B batch, N noise numbers or examples, D dimensions of an example, Q discrete dimensions among them,
L largest number of levels of a dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from remint.models.layers import normal_log_density
from remint.models.whole_numbers import WholeNumbers
from remint.records import Column

SMALLEST, LARGEST = torch.finfo(torch.float64).tiny, 1.0 - torch.finfo(torch.float64).eps  # inside (0, 1)
FARTHEST = 80.0  # its sinh still fits into single precision
BLOCK = 4096  # examples counted at a time
SMOOTHING = 0.5  # counts added to every level of every dimension (Jeffreys)


class Dequantiser(nn.Module):
    """Map between flattened examples and z."""

    noise_size: int  # N: noise numbers that place one example within its levels
    places: list[int]  # the dimension of each noise number

    def fit(self, x_ND: Tensor) -> None:
        """Fit the map to the training split. By default this does nothing."""

    def forward(self, x_BD: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, shape (B, D), in the precision of the noise, and log |dz / dv|, shape (B,)."""
        raise NotImplementedError

    def inverse(self, z_BD: Tensor) -> Tensor:
        """Return v, in double precision: floor(v) is x if x is discrete."""
        raise NotImplementedError

    def to_example(self, v_BD: Tensor) -> Tensor:
        """Return the example whose levels contain v, in the dtype of examples."""
        raise NotImplementedError


class QuantileDequantiser(Dequantiser):
    """z = the normal quantile of each dimension's empirical CDF at v: an identity flow on z is a factorised model.

    The CDF is piecewise linear: within a level its slope is the level's smoothed share of the training split, which is
    positive also for unseen levels. Double precision: single cannot represent the tails of a distribution function.
    """

    count_QL: Tensor  # integers: a change of precision does not alter them
    valid_QL: Tensor  # 1 for each level that the dimension has, else 0

    def __init__(self, levels: Sequence[int]) -> None:
        """``levels``: number of levels of each dimension."""
        super().__init__()
        self.noise_size = len(levels)
        self.places = list(range(len(levels)))
        levels_Q = torch.tensor(levels, dtype=torch.long)
        self.register_buffer("valid_QL", (torch.arange(max(levels, default=0)) < levels_Q.unsqueeze(1)).long(), persistent=False)
        self.register_buffer("count_QL", torch.zeros_like(self.valid_QL))

    def fit(self, x_ND: Tensor) -> None:
        row_Q = self.count_QL.shape[1] * torch.arange(self.noise_size, device=x_ND.device)
        self.count_QL.zero_()
        for part_BD in torch.split(x_ND, BLOCK):
            place_BD = part_BD.long() + row_Q
            self.count_QL += torch.bincount(place_BD.flatten(), minlength=self.count_QL.numel()).view_as(self.count_QL)

    def forward(self, x_BD: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        share_QL, edge_QL = self._distribution()
        level_QB = x_BD.long().T
        share_BQ = share_QL.gather(1, level_QB).T
        below_BQ = edge_QL.gather(1, level_QB).T + share_BQ * torch.special.ndtr(noise_BN.double())
        z_BQ = torch.special.ndtri(below_BQ.clamp(SMALLEST, LARGEST))
        log_slope_BQ = share_BQ.log() - normal_log_density(z_BQ)
        return z_BQ.to(noise_BN.dtype), log_slope_BQ.to(noise_BN.dtype).sum(1)

    def inverse(self, z_BD: Tensor) -> Tensor:
        share_QL, edge_QL = self._distribution()
        below_QB = torch.special.ndtr(z_BD.double()).T.contiguous()
        level_QB = torch.searchsorted(edge_QL, below_QB, right=True) - 1
        level_QB = torch.minimum(level_QB, self.valid_QL.sum(1, keepdim=True) - 1).clamp(min=0)
        inside_QB = (below_QB - edge_QL.gather(1, level_QB)) / share_QL.gather(1, level_QB)
        v_QB: Tensor = level_QB + inside_QB.clamp(0.0, 1.0)
        return v_QB.T

    def to_example(self, v_BD: Tensor) -> Tensor:
        return torch.minimum(v_BD.floor(), self.valid_QL.sum(1) - 1).clamp(min=0).to(torch.uint8)

    def _distribution(self) -> tuple[Tensor, Tensor]:
        """Return the share of each level, and of all levels below it, float64, each of shape (Q, L)."""
        weight_QL = self.count_QL.double() + SMOOTHING * self.valid_QL
        below_QL = self.count_QL.cumsum(1) - self.count_QL + SMOOTHING * (self.valid_QL.cumsum(1) - self.valid_QL).double()
        total_Q1 = weight_QL.sum(1, keepdim=True)
        return weight_QL / total_Q1, below_QL / total_Q1


class RowDequantiser(Dequantiser):
    """Dequantiser of table rows: categories by their quantiles, numbers unchanged or as z = asinh(x).

    A whole number is first moved uniformly within its interval (models/whole_numbers.py), so that it has a probability.

    asinh is nearly x within one standard deviation and logarithmic far out. Outliers of real tables thus move into the
    range that a network has seen, and their cost under a normal base is about that under a power law.
    """

    numeric_D: Tensor  # bool: which columns are numeric

    def __init__(self, columns: Sequence[Column], tails: Literal["asinh", "linear"]) -> None:
        super().__init__()
        self.tails = tails
        self.register_buffer("numeric_D", torch.tensor([column.numeric for column in columns]))
        # Their places as lists, because a graph for export cannot hold a shape that a mask decides.
        self.numbers = [place for place, column in enumerate(columns) if column.numeric]
        self.names = [place for place, column in enumerate(columns) if not column.numeric]
        self.categories = QuantileDequantiser([len(column.categories) for column in columns if not column.numeric])
        self.whole = WholeNumbers(columns)
        self.noise_size = self.categories.noise_size + self.whole.count
        self.places = [place for place, column in enumerate(columns) if not column.numeric]
        self.places += [place for place, column in enumerate(columns) if column.whole]

    def fit(self, x_ND: Tensor) -> None:
        self.categories.fit(x_ND[:, self.names])

    def forward(self, x_BD: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        x_BD = x_BD.to(noise_BN.dtype)
        category_noise_BQ, whole_noise_BW = torch.split(noise_BN, [self.categories.noise_size, self.whole.count], dim=1)
        z_BQ, log_slope_B = self.categories(x_BD[:, self.names], category_noise_BQ)
        if self.whole.count:
            half_D, shift_BD = self.whole.half_widths(x_BD.dtype), torch.zeros_like(x_BD)
            shift_BD[:, self.whole.places] = 2 * torch.special.ndtr(whole_noise_BW) - 1
            x_BD, log_slope_B = x_BD + half_D * shift_BD, log_slope_B + self.whole.log_width
        z_BD = x_BD.clone()
        z_BD[:, self.names] = z_BQ
        if self.tails == "asinh":
            number_BD = x_BD[:, self.numbers]
            z_BD[:, self.numbers] = number_BD.asinh()
            log_slope_B = log_slope_B - 0.5 * number_BD.square().log1p().sum(1)
        return z_BD, log_slope_B

    def inverse(self, z_BD: Tensor) -> Tensor:
        v_BD = z_BD.double().clone()
        v_BD[:, self.names] = self.categories.inverse(z_BD[:, self.names])
        if self.tails == "asinh":
            v_BD[:, self.numbers] = v_BD[:, self.numbers].clamp(-FARTHEST, FARTHEST).sinh()
        return v_BD

    def to_example(self, v_BD: Tensor) -> Tensor:
        x_BD = v_BD.float()
        x_BD[:, self.names] = self.categories.to_example(v_BD[:, self.names]).float()
        return self.whole.round(x_BD)
