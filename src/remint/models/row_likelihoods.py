"""Distributions over the rows of a table, which may lack values, and features of rows for a network.

    log p(row | theta) = sum over the observed columns of log p(value | theta of the column)

A missing value is summed out: given theta the columns are independent, so its factor is 1 (Nazabal et al.,
Handling incomplete heterogeneous data using VAEs, 2020). Numeric columns have densities, in nats of the standardised
value; categorical columns and those of whole numbers have probabilities.

Shapes: ... any leading shape, B batch, D columns, G columns with gaps, F input numbers of a network, P parameters, M mixture
components, N noise numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.models.layers import normal_log_density
from remint.models.likelihoods import Categorical, pick
from remint.models.whole_numbers import WholeNumbers, normal_log_mass
from remint.records import Column, DataSpec

MIN_LOG_SIGMA = -5.0  # for a column with standard deviation 1: without a floor the density grows without bound


class SigmaGaussianColumns(nn.Module):
    """Numeric columns, each a Gaussian around the decoder's output, with one learnt sigma per column.

    Rybkin et al., Simple and effective VAE training with calibrated decoders (2021).
    """

    parameters_per_dim = 1
    noise_per_dim = 1

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.log_sigma_D = nn.Parameter(torch.zeros(columns))

    def log_prob(self, x: Tensor, theta: Tensor, half_D: Tensor | None = None) -> Tensor:
        return _log_normal(x - theta.squeeze(-1), self._log_sigma(), half_D)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        return theta_BDP.squeeze(-1) + noise_BN * self._log_sigma().exp()

    def mean(self, theta_BDP: Tensor) -> Tensor:
        return theta_BDP.squeeze(-1)

    def _log_sigma(self) -> Tensor:
        return self.log_sigma_D.clamp(min=MIN_LOG_SIGMA)


class GaussianMixtureColumns(nn.Module):
    """Numeric columns, each a mixture of Gaussians. The decoder gives the weights, means and sigmas."""

    noise_per_dim = 2

    def __init__(self, mixtures: int) -> None:
        super().__init__()
        self.parameters_per_dim = 3 * mixtures

    def log_prob(self, x: Tensor, theta: Tensor, half_D: Tensor | None = None) -> Tensor:
        logit, mean, log_sigma = self._components(theta)
        component = _log_normal(x.unsqueeze(-1) - mean, log_sigma, None if half_D is None else half_D.unsqueeze(-1))
        return torch.logsumexp(logit.log_softmax(-1) + component, -1)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        logit, mean, log_sigma = self._components(theta_BDP)
        which_noise, value_noise = noise_BN.chunk(2, dim=1)
        which_BD1 = pick(logit, torch.special.ndtr(which_noise)).unsqueeze(-1)
        return mean.gather(-1, which_BD1).squeeze(-1) + value_noise * log_sigma.gather(-1, which_BD1).squeeze(-1).exp()

    def mean(self, theta_BDP: Tensor) -> Tensor:
        logit, mean, _ = self._components(theta_BDP)
        return (logit.softmax(-1) * mean).sum(-1)

    def _components(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, mean, log_sigma = theta.chunk(3, dim=-1)
        return logit, mean, log_sigma.clamp(min=MIN_LOG_SIGMA)


def _log_normal(centre: Tensor, log_sigma: Tensor, half: Tensor | None) -> Tensor:
    """Return the log density; with ``half`` of the width of each interval, as whole_numbers.normal_log_mass."""
    if half is None:
        return normal_log_density(centre * torch.exp(-log_sigma)) - log_sigma
    return normal_log_mass(centre, log_sigma, half)


class Gaps(nn.Module):
    """Missing values of drawn rows: in each column as often as in the training split, independently of the row.

    Only columns that lacked values at the first import have them. Their likelihood has no part in training.
    """

    share_G: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.places = [place for place, column in enumerate(columns) if column.absent]
        self.noise_size = len(self.places)
        if self.places:
            self.register_buffer("share_G", torch.tensor([columns[place].absent for place in self.places], dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x_ND: Tensor) -> None:
        """Set the shares from the training split."""
        if self.places:
            self.share_G.copy_(x_ND[:, self.places].isnan().double().mean(0))

    def add(self, x_BD: Tensor, noise_BG: Tensor) -> Tensor:
        """Return the rows with gaps where the noise says so."""
        if not self.places:
            return x_BD
        gapped_BD = x_BD.clone()
        missing_BG = torch.special.ndtr(noise_BG.double()) < self.share_G
        gapped_BD[:, self.places] = x_BD[:, self.places].masked_fill(missing_BG, torch.nan)
        return gapped_BD


class RowLikelihood(nn.Module):
    """p(row | theta). Theta holds the parameters of the numeric columns, then those of each categorical column."""

    def __init__(self, law: Literal["sigma_gaussian", "gaussian_mixture"], spec: DataSpec, mixtures: int) -> None:
        super().__init__()
        self.numeric = [place for place, column in enumerate(spec.columns) if column.numeric]
        self.sizes = {place: len(column.categories) for place, column in enumerate(spec.columns) if not column.numeric}
        # A table without numeric columns has no sigma to learn: an empty parameter would never change.
        shared = law == "sigma_gaussian" and len(self.numeric) > 0
        self.whole = WholeNumbers(spec.columns)
        self.law = SigmaGaussianColumns(len(self.numeric)) if shared else GaussianMixtureColumns(mixtures)
        self.categorical = {place: Categorical(size) for place, size in self.sizes.items()}
        self.parts = [len(self.numeric) * self.law.parameters_per_dim, *self.sizes.values()]
        self.outputs = sum(self.parts)
        self.noise_size = self.draw_noise = len(self.numeric) * self.law.noise_per_dim + len(self.sizes)

    def log_prob(self, x_BX: Tensor, theta: Tensor, observed_BX: Tensor | None = None) -> Tensor:
        """Return the log probability of the observed values, in nats, shape (..., B), for theta of shape (..., B, P).

        Values that are NaN, or not in ``observed_BX``, are missing.
        """
        observed_BD = ~x_BX.isnan() if observed_BX is None else observed_BX & ~x_BX.isnan()
        filled_BD = x_BX.nan_to_num(0.0).to(theta.dtype)
        numbers, *logits = torch.split(theta, self.parts, -1)
        # A missing value becomes 0 before its factor is masked out: a NaN would reach the gradient.
        half_D = self.whole.half_widths(theta.dtype)[self.numeric] if self.whole.count else None
        log_numeric = self.law.log_prob(filled_BD[:, self.numeric], self._by_column(numbers), half_D)
        total = torch.where(observed_BD[:, self.numeric], log_numeric, 0.0).sum(-1)
        for (place, law), logit in zip(self.categorical.items(), logits, strict=True):
            total = total + torch.where(observed_BD[:, place], law.log_prob(filled_BD[:, place], logit), 0.0)
        return total

    def sample(self, theta_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return complete rows, float32, shape (B, D), with every value drawn."""
        return self.draw(theta_BP, noise_BN)

    def draw(self, theta_BP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return the rows of ``sample``."""
        x_BD = theta_BP.new_empty(theta_BP.shape[0], len(self.numeric) + len(self.sizes), dtype=torch.float32)
        numbers_BP, *logits = torch.split(theta_BP, self.parts, -1)
        numbers_BN, places_BN = torch.split(noise_BN, [noise_BN.shape[1] - len(logits), len(logits)], 1)
        x_BD[:, self.numeric] = self.law.sample(self._by_column(numbers_BP), numbers_BN).float()
        for place, logit_BP, noise_B in zip(self.sizes, logits, places_BN.unbind(1), strict=True):
            x_BD[:, place] = pick(logit_BP, torch.special.ndtr(noise_B)).float()
        return self.whole.round(x_BD)

    def centre(self, theta_BP: Tensor) -> Tensor:
        """Return complete rows without noise, float32, shape (B, D): expected numbers and likeliest categories."""
        x_BD = theta_BP.new_empty(theta_BP.shape[0], len(self.numeric) + len(self.sizes), dtype=torch.float32)
        numbers_BP, *logits = torch.split(theta_BP, self.parts, -1)
        x_BD[:, self.numeric] = self.law.mean(self._by_column(numbers_BP)).float()
        for place, logit_BP in zip(self.sizes, logits, strict=True):
            x_BD[:, place] = logit_BP.argmax(1).float()
        return self.whole.round(x_BD)

    def _by_column(self, numbers: Tensor) -> Tensor:
        """Return the parameters of the numeric columns, shape (..., D, P)."""
        return numbers.view(*numbers.shape[:-1], len(self.numeric), self.law.parameters_per_dim)


class RowFeatures:
    """Features of rows, F numbers: numeric values (0 if missing), one-hot categories (all 0 if missing), missing flags.

    Only columns that may lack values have a flag (1 if missing). For the others it would always be 0.
    """

    def __init__(self, spec: DataSpec) -> None:
        self.numeric = [place for place, column in enumerate(spec.columns) if column.numeric]
        self.sizes = {place: len(column.categories) for place, column in enumerate(spec.columns) if not column.numeric}
        self.missing = [place for place, column in enumerate(spec.columns) if column.missing]
        self.width = len(self.numeric) + sum(self.sizes.values()) + len(self.missing)

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Return the features, shape (B, F), in the dtype of the rows."""
        absent_BD, filled_BD = x_BD.isnan(), x_BD.nan_to_num(0.0)
        parts = [filled_BD[:, self.numeric]]
        for place, size in self.sizes.items():
            parts.append(F.one_hot(filled_BD[:, place].long(), size) * ~absent_BD[:, place, None])
        return torch.cat([*parts, absent_BD[:, self.missing]], 1)
