"""Invertible layers over vectors, with their log-determinants, and their composition.

Shapes: B batch, D dimensions of a vector, K classes, P parameters of one element's transformation, ... any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from remint.models.layers import at_least_single, last_linear, mlp
from remint.models.splines import parameter_count, rational_quadratic
from remint.settings.recipe import FlowSettings

LOG_SCALE = 2.0  # an affine coupling multiplies by exp(-LOG_SCALE) .. exp(LOG_SCALE)
FLATTEST = 1e-2  # least standard deviation used to scale a channel to 1

Elementwise = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class Bijection(nn.Module):
    """Invertible map z -> z. ``c_BK``: the classes, one-hot, for a conditional flow; None for an unconditional one."""

    def fit(self, z: Tensor) -> None:
        """Set data-dependent initial values. ``z``: the data as input of this layer. By default this does nothing."""

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return the value and the log-determinant, shape (B,), in the requested direction."""
        raise NotImplementedError

    def fit_through(self, z: Tensor, c_BK: Tensor | None) -> Tensor:
        """Fit this layer to z and return its output. A composite layer fits each part to the output of the part before."""
        self.fit(z)
        value: Tensor = self(z, c_BK)[0]
        return value


class Chain(Bijection):
    """Layers in sequence; in reverse order for the inverse."""

    def __init__(self, layers: Sequence[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def fit_through(self, z: Tensor, c_BK: Tensor | None) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, Bijection)
            z = layer.fit_through(z, c_BK)
        return z

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        log_det_B = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
        for layer in reversed(self.layers) if inverse else self.layers:
            z, layer_log_det_B = layer(z, c_BK, inverse)
            log_det_B = log_det_B + layer_log_det_B
        return z, log_det_B


class ActNorm(Bijection):
    """Trained scale and shift of each channel (dimension 1). Their initial values give the data zero mean and unit variance.

    Kingma & Dhariwal, Glow (2018), with the statistics of the training split in place of those of the first batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        values = z.double().transpose(0, 1).flatten(1)
        spread = values.std(1, correction=0).clamp(min=FLATTEST)
        self.log_scale.copy_(-spread.log())
        self.shift.copy_(-values.mean(1) / spread)

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        per_channel = (-1, *[1] * (z.dim() - 2))
        log_scale, shift = self.log_scale.view(per_channel), self.shift.view(per_channel)
        log_det = self.log_scale.sum() * math.prod(z.shape[2:])
        value = (z - shift) * (-log_scale).exp() if inverse else z * log_scale.exp() + shift
        return value, (-log_det if inverse else log_det).expand(z.shape[0])


class Coupling(Bijection):
    """Coupling: a network of the kept dimensions gives the elementwise transformation of the others.

    Dinh et al., Density estimation using Real NVP (2017). At initialisation it is the identity.
    """

    kept: Tensor
    moved: Tensor

    def __init__(self, moved: Tensor, settings: FlowSettings, classes: int) -> None:
        """``moved``: mask of the transformed dimensions, bool, shape (D,). ``classes``: K of a conditional flow, else 0."""
        super().__init__()
        self.register_buffer("kept", (~moved).nonzero().squeeze(1))
        self.register_buffer("moved", moved.nonzero().squeeze(1))
        self.size, self.elementwise = elementwise(settings)
        sizes = [len(self.kept) + classes, *[settings.hidden] * settings.layers, len(self.moved) * self.size]
        self.net = mlp(sizes, nn.SiLU, dropout=settings.dropout)
        nn.init.zeros_(last_linear(self.net).weight)
        nn.init.zeros_(last_linear(self.net).bias)

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        kept = z[:, self.kept]
        theta = at_least_single(self.net(kept if c_BK is None else torch.cat([kept, c_BK], dim=1)))
        value, log_slope = self.elementwise(z[:, self.moved], theta.view(-1, len(self.moved), self.size), inverse)
        return z.index_copy(1, self.moved, value), log_slope.sum(1)


class Marginal(Bijection):
    """Transformation of data with one dimension; its P numbers are parameters, one set per class. Initially the identity."""

    def __init__(self, settings: FlowSettings, classes: int) -> None:
        super().__init__()
        size, self.elementwise = elementwise(settings)
        self.theta_KP = nn.Parameter(torch.zeros(max(1, classes), size))

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        theta_BP = self.theta_KP.expand(z.shape[0], -1) if c_BK is None else c_BK @ self.theta_KP
        value, log_slope = self.elementwise(z, at_least_single(theta_BP).unsqueeze(1), inverse)
        return value, log_slope.sum(1)


def elementwise(settings: FlowSettings) -> tuple[int, Elementwise]:
    """Return P and the transformation named by ``coupling``: a function of (value, theta of shape (..., P), inverse)."""
    if settings.coupling == "affine":
        return 2, affine

    def spline(x: Tensor, theta: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, theta, settings.bound, inverse)

    return parameter_count(settings.bins), spline


def affine(x: Tensor, theta: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Return exp(s) x + t, or its inverse, and the log of the slope. ``theta`` gives (s, t); tanh limits |s| to LOG_SCALE.

    An unlimited s grows without bound in an empty region, and so does the error of the inverse.
    """
    raw, shift = theta.unbind(-1)
    log_scale = LOG_SCALE * torch.tanh(raw / LOG_SCALE)
    if inverse:
        return (x - shift) * (-log_scale).exp(), -log_scale
    return x * log_scale.exp() + shift, log_scale
