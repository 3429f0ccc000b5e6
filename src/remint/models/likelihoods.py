"""Distributions over the levels of a pixel: their probabilities sum to 1 over 0 .. levels-1, exactly.

Shapes: ... any leading shape, B batch, D dimensions (pixels and channels), P parameters of one dimension,
M mixture components, L levels, N noise numbers.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from remint.models.layers import running_sums, to_levels, to_unit

MIN_LOG_SCALE = -7.0  # of the logistic, on the scale where the levels span [-1, 1]


class LevelLikelihood(Protocol):
    """p(level | theta), independent over dimensions given theta."""

    parameters_per_dim: int  # P
    noise_per_dim: int  # standard normal numbers that one draw takes

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Log probability of each level x, shape (...), under theta, shape (..., P); nats."""
        ...

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        """Levels, uint8, shape (B, D), a function of the noise."""
        ...


class Categorical:
    """One logit a level. Knows no order of the levels."""

    noise_per_dim = 1

    def __init__(self, levels: int) -> None:
        self.parameters_per_dim = levels

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        level = x.long().expand(theta.shape[:-1]).unsqueeze(-1)
        return theta.log_softmax(-1).gather(-1, level).squeeze(-1)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        return _pick(theta_BDP, torch.special.ndtr(noise_BN)).to(torch.uint8)


class DiscretisedLogistic:
    """Mixture of logistic distributions, each integrated over the level; the end levels take the tails.

    p(x) = sum_m pi_m [ s((x + h - mu_m) / sigma_m) - s((x - h - mu_m) / sigma_m) ] with s the logistic function, x on
    [-1, 1] and h half the distance of two levels. Salimans et al., PixelCNN++ (2017).
    """

    noise_per_dim = 2

    def __init__(self, levels: int, mixtures: int) -> None:
        self.levels = levels
        self.mixtures = mixtures
        self.parameters_per_dim = 3 * mixtures

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        logit, mean, log_scale = self._components(theta)
        level = x.unsqueeze(-1)
        half = 1.0 / (self.levels - 1)
        rate = torch.exp(-log_scale)
        centre = to_unit(level.to(theta.dtype), self.levels) - mean
        above = F.logsigmoid((centre + half) * rate)  # log P(below the level's upper edge)
        below = F.logsigmoid((half - centre) * rate)  # log P(above the level's lower edge)
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)): no difference of near numbers anywhere
        inner = above + below + torch.log(-torch.expm1(-2 * half * rate))
        component = torch.where(level == 0, above, torch.where(level == self.levels - 1, below, inner))
        return torch.logsumexp(logit.log_softmax(-1) + component, -1)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        logit, mean, log_scale = self._components(theta_BDP)
        which_noise, value_noise = noise_BN.chunk(2, dim=1)
        which_BD1 = _pick(logit, torch.special.ndtr(which_noise)).unsqueeze(-1)
        # The logistic's quantile log u / (1 - u), u = Phi(noise), from both tails so that neither underflows.
        quantile = torch.special.log_ndtr(value_noise) - torch.special.log_ndtr(-value_noise)
        value = mean.gather(-1, which_BD1).squeeze(-1) + quantile * log_scale.gather(-1, which_BD1).squeeze(-1).exp()
        return to_levels(value, self.levels)

    def _components(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, mean, log_scale = theta.chunk(3, dim=-1)
        return logit, mean, log_scale.clamp(min=MIN_LOG_SCALE)


def _pick(logit: Tensor, share: Tensor) -> Tensor:
    """Index drawn from softmax(logit), shape (...), by inverting its distribution function at ``share`` in (0, 1)."""
    reached = running_sums(logit.softmax(-1)[..., :-1])
    return (share.unsqueeze(-1) >= reached).sum(-1)


def likelihood(name: Literal["categorical", "discretised_logistic"], levels: int, mixtures: int) -> LevelLikelihood:
    kinds: dict[str, LevelLikelihood] = {
        "categorical": Categorical(levels),
        "discretised_logistic": DiscretisedLogistic(levels, mixtures),
    }
    return kinds[name]
