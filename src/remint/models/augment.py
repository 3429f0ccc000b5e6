"""Differentiable augmentation of real and drawn images before the critic, for small training sets.

    colour       brightness + U(-1/2, 1/2), saturation x U(0, 2), contrast x U(1/2, 3/2)
    translation  by up to an eighth of each side, the edge repeated
    cutout       a square of half the side, at any position, set to the middle of the range

Each is applied to an image with probability p, and the gradient passes through it to the generator (Zhao et al.,
Differentiable augmentation for data-efficient GAN training, 2020). p is adapted until r, the critic's overfitting to its
training examples, equals ``target`` (Karras et al., Training generative adversarial networks with limited data, ADA, 2020):

    r = mean sign(D(x)); for a loss that compares D(x) with D(G(z)): r = mean sign(D(x) - D(G(z)))
    p += sign(r - target) B / examples

r = 0: no overfitting; r = 1: the critic recognises every training example. Below p = 0.8 the augmentations do not leak into
drawn images. p is a buffer, and so part of every checkpoint. r is computed over the global batch.

Shapes: B batch, C channels, H height, W width, N noise numbers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.records import DataSpec
from remint.settings.recipe import CriticSettings

NOISE_NUMBERS = {"colour": 3, "translation": 2, "cutout": 2}  # noise numbers of each, plus one that decides whether it is applied
SHIFT_DIVISOR = 8  # an image moves by at most size / 8
CUTOUT_DIVISOR = 2  # the square's side is size / 2


class Augment(nn.Module):
    """Augmentation of each image by its own noise; the identity if the setting ``augment`` is 0."""

    probability: Tensor

    def __init__(self, settings: CriticSettings, spec: DataSpec) -> None:
        """Build the augmentation. Raises SettingsError if the data are a table and ``augment`` is set."""
        super().__init__()
        if settings.augment and spec.is_table:
            raise SettingsError("model.augment needs images, but this dataset is a table: remove it")
        self.target = settings.augment
        self.examples = settings.augment_examples
        self.scores_are_relative = settings.loss in (
            "relativistic",
            "wgan_gp",
        )  # whether only differences of scores have a meaning
        kinds = [kind for kind in NOISE_NUMBERS if kind in settings.augmentations]  # always in this order
        self.kinds = kinds if self.target else []
        self.noise_size = sum(1 + NOISE_NUMBERS[kind] for kind in self.kinds)
        self.register_buffer("probability", torch.zeros(()))

    def forward(self, x_BCHW: Tensor, noise_BN: Tensor) -> Tensor:
        """Augment images. Image i depends only on row i of the noise."""
        if not self.kinds:
            return x_BCHW
        uniform = torch.split(
            torch.special.ndtr(noise_BN.to(x_BCHW.dtype)), [1 + NOISE_NUMBERS[kind] for kind in self.kinds], dim=1
        )
        for kind, u_BN in zip(self.kinds, uniform, strict=True):
            applied_B1 = u_BN[:, :1] < self.probability
            changed_BCHW = {"colour": jitter_colour, "translation": translate, "cutout": cutout}[kind](x_BCHW, u_BN[:, 1:])
            x_BCHW = torch.where(applied_B1[:, :, None, None], changed_BCHW, x_BCHW)
        return x_BCHW

    @torch.no_grad()
    def adapt(self, real_B: Tensor, fake_B: Tensor) -> None:
        """Move p by one step, so that r approaches ``target``."""
        signs_B = (real_B - fake_B if self.scores_are_relative else real_B).sign()
        total, count = _sum_over_ranks(torch.stack([signs_B.sum(), torch.ones_like(signs_B).sum()]).double()).unbind()
        step = (total / count - self.target).sign() * count / self.examples
        self.probability.copy_((self.probability + step).clamp(0.0, 1.0))


def jitter_colour(x_BCHW: Tensor, u_BN: Tensor) -> Tensor:
    """Change brightness, saturation (of colour images) and contrast."""
    brightness, saturation, contrast = u_BN[:, :, None, None, None].unbind(1)
    x_BCHW = x_BCHW + (brightness - 0.5)
    grey = x_BCHW.mean(1, keepdim=True)
    x_BCHW = grey + (x_BCHW - grey) * 2.0 * saturation if x_BCHW.shape[1] > 1 else x_BCHW
    middle = x_BCHW.mean((1, 2, 3), keepdim=True)
    return middle + (x_BCHW - middle) * (0.5 + contrast)


def translate(x_BCHW: Tensor, u_BN: Tensor) -> Tensor:
    """Translate by whole pixels, by products with 0/1 matrices: the backward pass of indexing has no fixed order on CUDA."""
    rows_BHH, columns_BWW = (
        _shift_matrices(u_B, size).to(x_BCHW.dtype) for u_B, size in zip(u_BN.unbind(1), x_BCHW.shape[2:], strict=True)
    )
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return rows_BHH.unsqueeze(1) @ x_BCHW @ columns_BWW.unsqueeze(1).transpose(2, 3)


def _shift_matrices(u_B: Tensor, size: int) -> Tensor:
    """Return matrices that shift ``size`` pixels by at most max(1, size / 8); shape (B, size, size)."""
    farthest = max(1, size // SHIFT_DIVISOR)
    by_B = (u_B * (2 * farthest + 1)).floor().clamp(max=2 * farthest) - farthest
    from_BS = (torch.arange(size, device=u_B.device) - by_B.unsqueeze(1)).clamp(0, size - 1)
    return F.one_hot(from_BS.long(), size)


def cutout(x_BCHW: Tensor, u_BN: Tensor) -> Tensor:
    """Set a square of half the side, around a random position of each image, to 0. Parts outside the image are ignored."""
    rows_BH, columns_BW = (_cutout_mask(u_B, size) for u_B, size in zip(u_BN.unbind(1), x_BCHW.shape[2:], strict=True))
    return x_BCHW.masked_fill(rows_BH[:, None, :, None] & columns_BW[:, None, None, :], 0.0)


def _cutout_mask(u_B: Tensor, size: int) -> Tensor:
    middle_B1 = (u_B.unsqueeze(1) * size).floor()
    first_B1 = middle_B1 - size // CUTOUT_DIVISOR // 2
    positions = torch.arange(size, device=u_B.device)
    return (positions >= first_B1) & (positions < first_B1 + size // CUTOUT_DIVISOR)


def _sum_over_ranks(mine: Tensor) -> Tensor:
    """Return the sum over the ranks, in the order of the ranks. All ranks must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every).sum(0)
