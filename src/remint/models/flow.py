"""Neural spline coupling flow over discrete pixels.

    x  --dequantise-->  x + u  --empirical CDF-->  (0, 1)  --normal quantile-->  z  --couplings-->  base

Durkan et al., Neural Spline Flows (2019); coupling layers of Dinh et al., Density estimation using Real NVP (2017).
The first layers are fixed by the training split, so that training starts at the best factorised model.

Shapes: B batch, C channels, H height, W width, D = C H W dimensions, L levels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from remint.errors import SettingsError
from remint.models.contract import Batch, Model, Phase
from remint.models.layers import at_least_single, in_unit, last_linear, mlp, normal_log_density, running_sums
from remint.models.splines import parameters, rational_quadratic
from remint.recipe import FlowSettings
from remint.records import DataSpec

BOUND = 5.0  # the splines act within this many standard deviations
SMALLEST, LARGEST = torch.finfo(torch.float64).tiny, 1.0 - torch.finfo(torch.float64).eps  # inside (0, 1)
SMOOTHING = 0.5  # counts added to every level of every pixel (Jeffreys)


class PixelQuantiles(nn.Module):
    """Uniform dequantisation, each pixel's empirical CDF, and the normal quantile function.

    v = x + u with u = Phi(noise) in (0, 1) is uniform within its level, so the density of v integrates to
    the probability of x over [x, x + 1). The CDF is piecewise linear: within a level its slope is the level's
    smoothed share of the training split, which is positive for levels never seen. In double precision: the
    tails of a distribution function do not fit into single.
    """

    share_DL: Tensor
    edge_DL: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("share_DL", torch.full((spec.dims, spec.levels), 1.0 / spec.levels, dtype=torch.float64))
        self.register_buffer("edge_DL", torch.arange(spec.levels, dtype=torch.float64).repeat(spec.dims, 1) / spec.levels)

    def fit(self, x_BCHW: Tensor) -> None:
        """Sets the shares from the examples of the training split."""
        levels = self.spec.levels
        place_BD = x_BCHW.flatten(1).long() + levels * torch.arange(self.spec.dims, device=x_BCHW.device)
        count_DL = torch.bincount(place_BD.flatten(), minlength=self.share_DL.numel()).view_as(self.share_DL).double() + SMOOTHING
        share_DL = count_DL / count_DL.sum(1, keepdim=True)
        self.share_DL.copy_(share_DL)
        self.edge_DL.copy_(running_sums(share_DL) - share_DL)

    def forward(self, x_BD: Tensor, noise_BD: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |dz / dv|, both shape (B, D), in the precision of the noise."""
        level_DB = x_BD.long().T
        share_BD = self.share_DL.gather(1, level_DB).T
        edge_BD = self.edge_DL.gather(1, level_DB).T
        below_BD = edge_BD + share_BD * torch.special.ndtr(noise_BD.double())
        z_BD = torch.special.ndtri(below_BD.clamp(SMALLEST, LARGEST))
        log_slope_BD = share_BD.log() - normal_log_density(z_BD)
        return z_BD.to(noise_BD.dtype), log_slope_BD.to(noise_BD.dtype)

    def inverse(self, z_BD: Tensor) -> Tensor:
        """v = x + u, double precision, 0 <= v <= levels."""
        share_DB = torch.special.ndtr(z_BD.double()).T.contiguous()
        level_DB = (torch.searchsorted(self.edge_DL, share_DB, right=True) - 1).clamp(min=0)
        within_DB = (share_DB - self.edge_DL.gather(1, level_DB)) / self.share_DL.gather(1, level_DB)
        v_DB: Tensor = level_DB + within_DB.clamp(0.0, 1.0)
        return v_DB.T


class Coupling(nn.Module):
    """Transforms one part of the dimensions by splines that a network computes from the rest."""

    kept: Tensor
    moved: Tensor

    def __init__(self, moved: Tensor, settings: FlowSettings) -> None:
        """``moved``: which dimensions are transformed, bool, shape (D,). Starts as the identity."""
        super().__init__()
        self.register_buffer("kept", (~moved).nonzero().squeeze(1))
        self.register_buffer("moved", moved.nonzero().squeeze(1))
        self.size = parameters(settings.bins)
        sizes = [len(self.kept), settings.hidden, settings.hidden, len(self.moved) * self.size]
        self.net = mlp(sizes, nn.SiLU, dropout=settings.dropout)
        nn.init.zeros_(last_linear(self.net).weight)
        nn.init.zeros_(last_linear(self.net).bias)

    def forward(self, z_BD: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The transformed point, shape (B, D), and the log-determinant, shape (B,)."""
        theta = at_least_single(self.net(z_BD[:, self.kept])).view(-1, len(self.moved), self.size)
        moved, log_slope = rational_quadratic(z_BD[:, self.moved], theta, BOUND, inverse)
        return z_BD.index_copy(1, self.moved, moved), log_slope.sum(1)


class Flow(Model):
    """CanSample and HasLogProb (models/contract.py)."""

    def __init__(self, settings: FlowSettings, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.sample_noise = self.density_noise = spec.dims
        self.pixels = PixelQuantiles(spec)
        self.couplings = nn.ModuleList(Coupling(part, settings) for part in partitions(spec, settings.couplings))

    @torch.no_grad()
    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        self.pixels.fit(x_NX)

    def to_base(self, x_BCHW: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        """v = x + u, u = Phi(noise), as a point of the base space, shape (B, D), and log |det dz / dv|, shape (B,)."""
        z_BD, log_slope_BD = self.pixels(x_BCHW.flatten(1), noise_BN)
        log_det_B = log_slope_BD.sum(1)
        for coupling in self.couplings:
            z_BD, log_slope_B = coupling(z_BD)
            log_det_B = log_det_B + log_slope_B
        return z_BD, log_det_B

    def from_base(self, z_BD: Tensor) -> Tensor:
        """The inverse: v, double precision, 0 <= v <= levels, shape (B, D)."""
        for coupling in reversed(self.couplings):
            z_BD, _ = coupling(z_BD, inverse=True)
        v_BD: Tensor = self.pixels.inverse(z_BD)
        return v_BD

    def log_prob(self, x_BCHW: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        z_BD, log_det_B = self.to_base(x_BCHW, noise_BN)
        return normal_log_density(z_BD).sum(1) + log_det_B

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        x_BD = self.from_base(noise_BN).floor().clamp(0, self.spec.levels - 1).to(torch.uint8)
        return x_BD.view(-1, *self.spec.shape)


def partitions(spec: DataSpec, count: int) -> list[Tensor]:
    """Which dimensions each coupling transforms, bool, shape (D,).

    A checkerboard and its complement, so that each pixel is first conditioned on its neighbours; then fixed random
    halves, each followed by its complement.
    """
    c, h, w = spec.image
    board = (torch.arange(c)[:, None, None] + torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    parts: list[Tensor] = []
    while len(parts) < count:
        half = board.flatten() if not parts else torch.randperm(spec.dims, generator=generator) % 2 == 0
        parts += [half, ~half]
    return parts[:count]


class Likelihood(Phase):
    """Maximum likelihood: the loss is the negative log density, in bits per dimension."""

    name: ClassVar[str] = "likelihood"

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model
        self.noise_size = model.density_noise

    def forward(self, batch: Batch) -> Tensor:
        return in_unit(-self.model.log_prob(batch.x_BX, batch.noise_BN).mean(), self.model.spec)


def build(settings: FlowSettings, spec: DataSpec) -> Flow:
    """Raises SettingsError where the data have a single dimension, which leaves nothing to condition on."""
    if spec.dims < 2:
        raise SettingsError("family flow needs examples of at least 2 dimensions: use another family")
    return Flow(settings, spec)


def phases(model: Flow, settings: FlowSettings) -> list[Phase]:
    return [Likelihood(model)]
