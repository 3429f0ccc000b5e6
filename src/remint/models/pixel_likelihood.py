"""Distribution over whole images, whose pixels are independent given the parameters.

Shapes: ... any leading shape, B batch, D dimensions (pixels and channels), P parameters of one dimension, N noise numbers,
X the axes of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remint.models.layers import to_levels
from remint.models.likelihoods import LevelLikelihood
from remint.records import DataSpec
from remint.settings.recipe import Pixels


class PixelLikelihood(nn.Module):
    """p(image | theta). The pixels are independent given theta, which has D * P numbers."""

    def __init__(self, law: LevelLikelihood, spec: DataSpec, sample_as: Pixels) -> None:
        """``sample_as``: output of ``sample`` for each pixel: its likeliest level, the level nearest to its mean, or a draw."""
        super().__init__()
        self.law, self.spec, self.sample_as = law, spec, sample_as
        self.outputs = spec.dims * law.parameters_per_dim
        self.draw_noise = spec.dims * law.noise_per_dim
        self.noise_size = self.draw_noise if sample_as == "draw" else 0

    def log_prob(self, x_BX: Tensor, theta: Tensor, observed_BX: Tensor | None = None) -> Tensor:
        """Return the log probability of the observed values, by default all, in nats, shape (..., B).

        ``theta``: shape (..., B, D * P).
        """
        log_prob = self.law.log_prob(x_BX.flatten(1), self._by_pixel(theta))
        return (log_prob if observed_BX is None else torch.where(observed_BX.flatten(1), log_prob, 0.0)).sum(-1)

    def sample(self, theta_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return x_BX, uint8."""
        # Given theta the pixels are independent: a draw adds noise to each pixel, which real images do not have. The mode is
        # the image that the latents describe (on digits its Frechet distance is a quarter lower).
        if self.sample_as != "draw":
            return self.centre(theta_BP)
        return self.draw(theta_BP, noise_BN)

    def draw(self, theta_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return x_BX, uint8, with every pixel drawn. It takes ``draw_noise`` numbers."""
        return self.law.sample(self._by_pixel(theta_BP), noise_BN).view(-1, *self.spec.shape)

    def centre(self, theta_BP: Tensor) -> Tensor:
        """Return x_BX, uint8, without noise: each pixel's likeliest level with ``mode``, else the level nearest to its mean."""
        if self.sample_as == "mode":
            return self.law.mode(self._by_pixel(theta_BP)).view(-1, *self.spec.shape)
        return to_levels(self.mean(theta_BP), self.spec.levels)

    def mean(self, theta_BP: Tensor) -> Tensor:
        """Return the expected value of each pixel in [-1, 1], shape (B, X)."""
        mean_BD = self.law.mean(self._by_pixel(theta_BP))
        return mean_BD.view(-1, *self.spec.shape)

    def _by_pixel(self, theta: Tensor) -> Tensor:
        """Return theta with shape (..., D, P)."""
        return theta.view(*theta.shape[:-1], self.spec.dims, self.law.parameters_per_dim)
