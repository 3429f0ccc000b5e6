"""Whole-number columns of a table: probabilities of their values, and the nearest whole number within the seen range.

A whole number k stands for the interval [k - 1/2, k + 1/2], so that its probability is that of the interval. Values are
standardised: the interval around x is [x - h, x + h], with h = 1 / (2 scale).

Shapes: B batch, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from remint.models.layers import normal_log_density
from remint.records import Column

FAR = 20.0  # standard deviations: beyond, the gradient of log_ndtr is wrong or infinite in single precision
NARROW = 0.01  # of a standard deviation: in so narrow an interval the density is constant, and exact where a difference is not


class WholeNumbers(nn.Module):
    """Whole-number columns among ``columns``. It has no weights."""

    forms_4D: Tensor  # mean, scale, least and most in double precision, as the integers of these bits: no cast alters them
    whole_D: Tensor  # bool

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.places = [place for place, column in enumerate(columns) if column.whole]
        self.count = len(self.places)
        self.log_width = -sum(math.log(column.scale) for column in columns if column.whole)  # of an example's intervals
        self.forms = [[float(getattr(each, key) or 0) for each in columns] for key in ("mean", "scale", "least", "most")]
        self.register_buffer("forms_4D", torch.tensor(self.forms, dtype=torch.float64).view(torch.int64), persistent=False)
        self.register_buffer("whole_D", torch.tensor([column.whole for column in columns], dtype=torch.bool), persistent=False)

    def half_widths(self, dtype: torch.dtype) -> Tensor:
        """Return half the width of each column's intervals, 0 where values are no whole numbers, shape (D,)."""
        return torch.where(self.whole_D, 0.5 / self._forms()[1], 0.0).to(dtype)

    def round(self, x_BD: Tensor) -> Tensor:
        """Return rows with each whole-number column at the nearest whole number within its range; the others unchanged."""
        if not self.count:
            return x_BD
        mean_D, scale_D, least_D, most_D = self._forms()
        number_BD = (x_BD.double() * scale_D + mean_D).round()
        number_BD = torch.minimum(torch.maximum(number_BD, least_D), most_D)
        return torch.where(self.whole_D, ((number_BD - mean_D) / scale_D).to(x_BD.dtype), x_BD)

    def _forms(self) -> Tensor:
        """Return mean, scale, least and most, float64 (4, D)."""
        if torch.compiler.is_exporting():  # ONNX cannot read the bits of an integer as a number
            return torch.tensor(self.forms, dtype=torch.float64)
        return self.forms_4D.view(torch.float64)


def normal_log_mass(centre: Tensor, log_sigma: Tensor, half: Tensor) -> Tensor:
    """Return log [Phi((centre + half) / sigma) - Phi((centre - half) / sigma)]; the log density where ``half`` is 0.

    ``centre``: distance of the value from the mean. In the lower tail, by symmetry, both terms are small and precise.
    """
    rate = torch.exp(-log_sigma)
    density = normal_log_density(centre * rate) - log_sigma
    narrow = half * rate < NARROW
    wide = torch.where(narrow, 1.0, half)  # its difference is not used where the interval is narrow: keep its gradient finite
    near, far = (wide - centre.abs()) * rate, (-wide - centre.abs()) * rate
    tail = near < -FAR
    log_near, log_far = (torch.special.log_ndtr(torch.where(tail, -1.0, edge)) for edge in (near, far))
    difference = log_near + torch.log((-torch.expm1(log_far - log_near)).clamp_min(torch.finfo(near.dtype).tiny))
    difference = torch.where(tail, _tail_log_mass(torch.where(tail, -near, FAR), 2 * wide * rate), difference)
    width = torch.where(half > 0, 2 * half, 1.0).log()
    return torch.where(narrow, density + width, difference)


def _tail_log_mass(near: Tensor, width: Tensor) -> Tensor:
    """Return log [Phi(near + width) - Phi(near)] for a large ``near``, by Phi(x) = 1 - exp(-x^2 / 2) erfcx(x / sqrt 2) / 2."""
    left, right = (torch.special.erfcx(edge * math.sqrt(0.5)) for edge in (near, near + width))
    return -0.5 * near.square() + torch.log(left - right * torch.exp(-width * (near + 0.5 * width))) - math.log(2.0)
