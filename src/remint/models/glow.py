"""Invertible layers over the maps of images: the multi-scale flow.

    scale(z) = squeeze, then couplings x (ActNorm, 1x1 convolution, coupling), then half of the channels to the base,
    conditioned on the other half, which goes to the next scale

Kingma & Dhariwal, Glow (2018); Dinh et al., Density estimation using Real NVP (2017).

Shapes: B batch, C channels, H height, W width, D = C H W dimensions, K classes, P parameters of one element's
transformation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.bijections import ActNorm, Bijection, Chain, Elementwise, affine, elementwise
from remint.models.convolutional import SameSizeNetwork
from remint.models.layers import at_least_single
from remint.settings.recipe import FlowSettings


class Squeeze(Bijection):
    """Squeeze: each 2 x 2 block of a map becomes one position with four times as many channels."""

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        moved = F.pixel_shuffle(z, 2) if inverse else F.pixel_unshuffle(z, 2)
        return moved, torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)


class InvertibleConvolution(Bijection):
    """1x1 convolution by the matrix P L (U + diag(s)), at initialisation a random rotation.

    P and the signs of s are fixed; L has ones on its diagonal. The log-determinant is H W sum(log |s|), and the
    inverse solves two triangular systems. Half precision is never used.
    """

    order_C: Tensor
    sign_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation_CC = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        permutation_CC, lower_CC, upper_CC = torch.linalg.lu(rotation_CC)
        self.register_buffer("order_C", permutation_CC.argmax(1))
        self.register_buffer("sign_C", upper_CC.diagonal().sign().long())
        self.lower_CC = nn.Parameter(lower_CC.tril(-1).float())
        self.upper_CC = nn.Parameter(upper_CC.triu(1).float())
        self.log_scale_C = nn.Parameter(upper_CC.diagonal().abs().log().float())

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            matrix_CC = self._inverse_matrix().to(z.dtype) if inverse else self._matrix()
            moved = F.conv2d(z, matrix_CC[:, :, None, None])
        log_det = self.log_scale_C.sum() * math.prod(z.shape[2:])
        return moved, (-log_det if inverse else log_det).expand(z.shape[0])

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity_CC = torch.eye(len(self.sign_C), dtype=self.lower_CC.dtype, device=self.lower_CC.device)
        diagonal_CC = torch.diag(self.sign_C * self.log_scale_C.exp())
        return self.lower_CC.tril(-1) + identity_CC, self.upper_CC.triu(1) + diagonal_CC

    def _matrix(self) -> Tensor:
        lower_CC, upper_CC = self._factors()
        return (lower_CC @ upper_CC)[self.order_C]

    def _inverse_matrix(self) -> Tensor:
        """Return the inverse matrix, in double precision."""
        lower_CC, upper_CC = (factor_CC.double() for factor_CC in self._factors())
        permutation_CC = torch.eye(len(self.order_C), dtype=torch.float64, device=self.order_C.device)[self.order_C]
        solved_CC = torch.linalg.solve_triangular(lower_CC, permutation_CC.T.contiguous(), upper=False, unitriangular=True)
        matrix_CC: Tensor = torch.linalg.solve_triangular(upper_CC, solved_CC, upper=True)
        return matrix_CC


class MapCoupling(Bijection):
    """Coupling of a map: the first half of the channels gives, by a residual network, the transformation of the second.

    At initialisation it is the identity.
    """

    def __init__(self, channels: int, settings: FlowSettings, classes: int, kind: tuple[int, Elementwise]) -> None:
        super().__init__()
        self.size, self.elementwise = kind
        self.kept = channels - channels // 2
        self.net = SameSizeNetwork(
            channels_in=self.kept,
            width=settings.width,
            channels_out=(channels - self.kept) * self.size,
            blocks=settings.blocks,
            extra_features=classes,
            dilation=settings.dilation,
            dropout=settings.dropout,
            zero=True,
        )

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        kept_BCHW, moved_BCHW = z[:, : self.kept], z[:, self.kept :]
        b, c, h, w = moved_BCHW.shape
        theta = at_least_single(self.net(kept_BCHW, c_BK)).view(b, c, self.size, h, w).movedim(2, -1)
        value_BCHW, log_slope = self.elementwise(moved_BCHW, theta, inverse)
        return torch.cat([kept_BCHW, value_BCHW], dim=1), log_slope.flatten(1).sum(1)


class Scale(Bijection):
    """One scale and all coarser scales: map z, shape (B, C, H, W), to a point of the base, shape (B, D), and back.

    One half of the channels is kept for the coarser scales, the other is factored out to the base. An affine coupling,
    conditioned on the kept channels, standardises the factored ones: Glow's learnt prior.
    """

    def __init__(self, image: tuple[int, int, int], settings: FlowSettings, classes: int, scales: int) -> None:
        """``image``: C, H, W of this scale's input. ``scales``: number of scales from this one on."""
        super().__init__()
        channels, self.height, self.width = 4 * image[0], image[1] // 2, image[2] // 2
        layers: list[Bijection] = [Squeeze()]
        for _ in range(settings.couplings):
            coupling = MapCoupling(channels, settings, classes, elementwise(settings))
            layers += [ActNorm(channels), InvertibleConvolution(channels), coupling]
        self.factored_size, self.coarser = 0, None
        if scales > 1:
            layers.append(MapCoupling(channels, settings, classes, (2, affine)))
            self.factored_size = channels // 2 * self.height * self.width  # of the D numbers
            self.coarser = Scale((channels - channels // 2, self.height, self.width), settings, classes, scales - 1)
        self.chain = Chain(layers)

    def fit_through(self, z: Tensor, c_BK: Tensor | None) -> Tensor:
        z = self.chain.fit_through(z, c_BK)
        if self.coarser is None:
            return z.flatten(1)
        kept, factored = z.chunk(2, dim=1)
        return torch.cat([factored.flatten(1), self.coarser.fit_through(kept, c_BK)], dim=1)

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return self._from_base(z, c_BK) if inverse else self._to_base(z, c_BK)

    def _to_base(self, z: Tensor, c_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        z, log_det_B = self.chain(z, c_BK)
        if self.coarser is None:
            return z.flatten(1), log_det_B
        kept, factored = z.chunk(2, dim=1)
        base_BD, coarser_B = self.coarser(kept, c_BK)
        return torch.cat([factored.flatten(1), base_BD], dim=1), log_det_B + coarser_B

    def _from_base(self, base_BD: Tensor, c_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        maps, coarser_B = [base_BD[:, self.factored_size :]], 0.0
        if self.coarser is not None:
            kept, coarser_B = self.coarser(base_BD[:, self.factored_size :], c_BK, inverse=True)
            maps = [kept, base_BD[:, : self.factored_size]]
        z = torch.cat([part.reshape(base_BD.shape[0], -1, self.height, self.width) for part in maps], dim=1)
        z, log_det_B = self.chain(z, c_BK, inverse=True)
        return z, log_det_B + coarser_B


class Multiscale(Bijection):
    """All scales of an image. The input is the flattened image."""

    def __init__(self, image: tuple[int, int, int], settings: FlowSettings, classes: int) -> None:
        """Build the scales. Raises SettingsError if the image cannot be halved once for each scale."""
        super().__init__()
        _, height, width = image
        unit = 2**settings.scales
        if height % unit or width % unit:
            most_scales = max((s for s in range(1, 10) if height % 2**s == 0 and width % 2**s == 0), default=0)
            remedy = (
                f"use at most {most_scales}, or resize or pad the images"
                if most_scales
                else "resize or pad the images, or use network: mlp"
            )
            raise SettingsError(
                f"model.scales: {settings.scales} halves an image {settings.scales} times, but {height} x {width} are not "
                f"multiples of {unit}: {remedy}"
            )
        self.image = image
        self.scale = Scale(image, settings, classes, settings.scales)

    def fit_through(self, z: Tensor, c_BK: Tensor | None) -> Tensor:
        return self.scale.fit_through(z.view(-1, *self.image), c_BK)

    def forward(self, z: Tensor, c_BK: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if inverse:
            z_BCHW, log_det_B = self.scale(z, c_BK, inverse=True)
            return z_BCHW.flatten(1), log_det_B
        base_BD, log_det_B = self.scale(z.view(-1, *self.image), c_BK)
        return base_BD, log_det_B
