"""Class labels of a conditional model.

Shapes: B batch, N examples, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.layers import running_sums
from remint.records import DataSpec


class Labels(nn.Module):
    """Class shares in the training split, and labels as input of a network.

    For an unconditional model ``width`` and ``noise_size`` are 0, and ``split_noise`` and ``append_one_hot`` return their
    inputs: a network needs no special case.
    """

    share_K: Tensor

    def __init__(self, conditional: bool, spec: DataSpec) -> None:
        """Build the labels. Raises SettingsError if the model is conditional and the data have no labels."""
        super().__init__()
        if conditional and spec.classes == 0:
            raise SettingsError("model.conditional: true needs labels, but this dataset has none: remove it, or add labels")
        self.conditional = conditional
        self.width = spec.classes if conditional else 0  # K: numbers that ``one_hot`` adds to a network's input
        self.noise_size = int(conditional)  # the last noise number of a sample draws its class
        if conditional:
            self.register_buffer("share_K", torch.full((spec.classes,), 1.0 / spec.classes, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, y_N: Tensor | None) -> None:
        """Set the shares from the labels of the training split."""
        if self.conditional:
            assert y_N is not None
            self.share_K.copy_(torch.bincount(y_N, minlength=self.width).double() / len(y_N))

    def split_noise(self, noise_BN: Tensor, y_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the noise without the number that draws the class, and the classes: those given, else drawn by that number."""
        if not self.conditional:
            return noise_BN, None
        rest_BN, last_B = noise_BN[:, :-1], noise_BN[:, -1]
        if y_B is None:
            cumulative_K = running_sums(self.share_K)[:-1]
            y_B = (torch.special.ndtr(last_B.double()).unsqueeze(1) >= cumulative_K).sum(1)
        return rest_BN, y_B

    def one_hot(self, y_B: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the labels one-hot, shape (B, K)."""
        assert y_B is not None, "a conditional model needs the class"
        return F.one_hot(y_B, self.width).to(dtype)

    def append_one_hot(self, x: Tensor, y_B: Tensor | None) -> Tensor:
        """Return x, shape (..., B, D), with one-hot classes appended: (..., B, D + K); x itself if unconditional."""
        if not self.conditional:
            return x
        return torch.cat([x, self.one_hot(y_B, x.dtype).expand(*x.shape[:-1], -1)], dim=-1)
