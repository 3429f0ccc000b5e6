"""Distributions over the levels of a pixel. Their probabilities over 0 .. levels-1 sum to exactly 1.

Shapes: ... any leading shape, B batch, D dimensions (pixels and channels), P parameters of one dimension,
M mixture components, L levels, N noise numbers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.layers import normal_log_density, running_sums, to_levels, to_unit
from remint.models.modes import mode

MIN_LOG_SCALE = -7.0  # for logistic and Gaussian, on the scale on which the levels span [-1, 1]


class LevelLikelihood(nn.Module):
    """p(level | theta), independent over dimensions given theta."""

    parameters_per_dim: int  # P
    noise_per_dim: int  # standard normal numbers for one draw
    levels: int  # L

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return the log probability of each level x, shape (...), under theta, shape (..., P); nats."""
        raise NotImplementedError

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        """Return levels, uint8, shape (B, D): a function of the noise."""
        raise NotImplementedError

    def mode(self, theta_BDP: Tensor) -> Tensor:
        """Return the likeliest level, the least of equal ones, uint8, shape (B, D)."""
        return mode(self, theta_BDP)

    def inner_levels(self, theta: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the last level between the ends that can be the likeliest, each of shape (...), theta's type.

        ``least``: the log probability of an end level. The first is above the last where there is no such level.
        """
        raise NotImplementedError

    def mean(self, theta: Tensor) -> Tensor:
        """Return the expected value, shape (...), on the scale on which the levels span [-1, 1]; differentiable in theta.

        For a continuous law integrated over levels: the mean of the continuous law, with values outside [-1, 1] clamped.
        It is 1 - integral over [-1, 1] of the distribution function, and costs the same for any number of levels.
        """
        raise NotImplementedError


class Bernoulli(LevelLikelihood):
    """One logit: that of level 1. For binarised images, which have two levels."""

    parameters_per_dim = 1
    noise_per_dim = 1

    def __init__(self, levels: int) -> None:
        """Build the likelihood. Raises SettingsError if there are more than two levels (grey values are not probabilities)."""
        super().__init__()
        if levels != 2:
            raise SettingsError(
                f"model.likelihood: bernoulli needs binarised images, with 2 levels, but these have {levels}: "
                "use discretised_logistic, or binarise the images"
            )
        self.levels = levels

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        logit = theta.squeeze(-1)
        log_prob: Tensor = F.logsigmoid(torch.where(x == 1, logit, -logit))
        return log_prob

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        # As in Categorical: the upper tail of the noise is level 1.
        return torch.gt(theta_BDP.squeeze(-1).sigmoid(), torch.special.ndtr(-noise_BN)).to(torch.uint8)

    def inner_levels(self, theta: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(least), torch.zeros_like(least)

    def mean(self, theta: Tensor) -> Tensor:
        return torch.tanh(theta.squeeze(-1) / 2)


class Categorical(LevelLikelihood):
    """One logit per level. The order of the levels is not used."""

    noise_per_dim = 1

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.parameters_per_dim = self.levels = levels

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        level = x.long().expand(theta.shape[:-1]).unsqueeze(-1)
        return theta.log_softmax(-1).gather(-1, level).squeeze(-1)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        return pick(theta_BDP, torch.special.ndtr(noise_BN)).to(torch.uint8)

    def mode(self, theta_BDP: Tensor) -> Tensor:
        return theta_BDP.log_softmax(-1).argmax(-1).to(torch.uint8)  # argmax takes the first of equal values

    def mean(self, theta: Tensor) -> Tensor:
        level = torch.arange(self.parameters_per_dim, dtype=theta.dtype, device=theta.device)
        return (theta.softmax(-1) * to_unit(level, self.parameters_per_dim)).sum(-1)


class DiscretisedLogistic(LevelLikelihood):
    """Mixture of logistic distributions, each integrated over the level; the end levels take the tails.

    p(x) = sum_m pi_m [ s((x + h - mu_m) / sigma_m) - s((x - h - mu_m) / sigma_m) ] with s the logistic function, x on
    [-1, 1] and h half the distance of two levels. Salimans et al., PixelCNN++ (2017).
    """

    noise_per_dim = 2

    def __init__(self, levels: int, mixtures: int) -> None:
        super().__init__()
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
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) avoids the difference of near numbers
        inner = above + below + torch.log(-torch.expm1(-2 * half * rate))
        component = torch.where(level == 0, above, torch.where(level == self.levels - 1, below, inner))
        return torch.logsumexp(logit.log_softmax(-1) + component, -1)

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        logit, mean, log_scale = self._components(theta_BDP)
        which_noise, value_noise = noise_BN.chunk(2, dim=1)
        which_BD1 = pick(logit, torch.special.ndtr(which_noise)).unsqueeze(-1)
        # Quantile of the logistic: log u / (1 - u), u = Phi(noise), from both tails so that neither underflows.
        quantile = torch.special.log_ndtr(value_noise) - torch.special.log_ndtr(-value_noise)
        value = mean.gather(-1, which_BD1).squeeze(-1) + quantile * log_scale.gather(-1, which_BD1).squeeze(-1).exp()
        return to_levels(value, self.levels)

    def inner_levels(self, theta: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture rises towards its means. A component counts only near its own mean.

        With half widths h of a level and rates r, a component has at most tanh(hr / 2) of its mass in a level, exp(-rd)
        2 sinh(hr) in one at a distance d >= h, and at least tanh(hr) / 2 in the level of its mean. One of M components has at
        least 1/M of the largest probability of a level.
        """
        logit, mean, log_scale = self._components(theta)
        rate, half = torch.exp(-log_scale), 1.0 / (self.levels - 1)
        share = logit.log_softmax(-1)
        best = torch.maximum(least, (share + torch.log(torch.tanh(half * rate) / 2)).amax(-1)).unsqueeze(-1)
        needed = best - math.log(self.mixtures) - 0.1 - share  # of the log mass of a component; 0.1: rounding
        counts = torch.log(torch.tanh(half * rate / 2)) >= needed
        reach = (half * rate + torch.log(-torch.expm1(-2 * half * rate)) - needed).maximum(half * rate) / rate
        low = torch.where(counts, mean - reach, torch.inf).amin(-1).maximum(mean.amin(-1))
        high = torch.where(counts, mean + reach, -torch.inf).amax(-1).minimum(mean.amax(-1))
        return ((low + 1) / (2 * half)).floor() - 1, ((high + 1) / (2 * half)).ceil() + 1

    def mean(self, theta: Tensor) -> Tensor:
        logit, mean, log_scale = self._components(theta)
        rate = torch.exp(-log_scale)
        # The logistic function is the slope of softplus.
        below = (F.softplus((1 - mean) * rate) - F.softplus((-1 - mean) * rate)) / rate
        return 1 - (logit.softmax(-1) * below).sum(-1)

    def _components(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, mean, log_scale = theta.chunk(3, dim=-1)
        return logit, mean, log_scale.clamp(min=MIN_LOG_SCALE)


class SigmaGaussian(LevelLikelihood):
    """Gaussian integrated over the level, with one learnt scale for all pixels; the end levels take the tails.

    p(x) = Phi((x + h - mu) / sigma) - Phi((x - h - mu) / sigma), x on [-1, 1] and h half the distance of two levels. The
    scale balances reconstruction and KL: Rybkin et al., Simple and effective VAE training with calibrated decoders (2021).
    Their density is integrated here: it becomes a probability, comparable with the other likelihoods.
    """

    parameters_per_dim = 1
    noise_per_dim = 1

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        half = 1.0 / (self.levels - 1)
        rate = torch.exp(-self._log_sigma())
        centre = to_unit(x.to(theta.dtype), self.levels) - theta.squeeze(-1)
        # By symmetry the difference is taken in the lower tail, where both terms are small and precise to all digits.
        near, far = (half - centre.abs()) * rate, (-half - centre.abs()) * rate
        log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
        inner = log_near + torch.log(-torch.expm1(log_far - log_near))
        above = torch.special.log_ndtr((half + centre) * rate)  # log P(below the level's upper edge)
        below = torch.special.log_ndtr((half - centre) * rate)  # log P(above the level's lower edge)
        return torch.where(x == 0, above, torch.where(x == self.levels - 1, below, inner))

    def sample(self, theta_BDP: Tensor, noise_BN: Tensor) -> Tensor:
        return to_levels(theta_BDP.squeeze(-1) + noise_BN * self._log_sigma().exp(), self.levels)

    def inner_levels(self, theta: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        mean = (theta.squeeze(-1) + 1) * ((self.levels - 1) / 2)
        return mean.floor() - 1, mean.ceil() + 1  # one more for rounding

    def mean(self, theta: Tensor) -> Tensor:
        centre, sigma = theta.squeeze(-1), self._log_sigma().exp()
        upper, lower = (1 - centre) / sigma, (-1 - centre) / sigma

        def area(x: Tensor) -> Tensor:  # its slope is the normal distribution function
            below: Tensor = x * torch.special.ndtr(x)
            return below + normal_log_density(x).exp()

        return 1 - sigma * (area(upper) - area(lower))

    def _log_sigma(self) -> Tensor:
        return self.log_sigma.clamp(min=MIN_LOG_SCALE)


def pick(logit: Tensor, share: Tensor) -> Tensor:
    """Draw an index from softmax(logit), shape (...), by inverting its distribution function at ``share`` in (0, 1)."""
    cumulative = running_sums(logit.softmax(-1)[..., :-1])
    return (share.unsqueeze(-1) >= cumulative).sum(-1)


LevelLaw = Literal["bernoulli", "categorical", "discretised_logistic", "sigma_gaussian"]


def level_likelihood(name: LevelLaw, levels: int, mixtures: int) -> LevelLikelihood:
    """Return the named likelihood. Raises SettingsError as Bernoulli does."""
    if name == "bernoulli":
        return Bernoulli(levels)
    if name == "categorical":
        return Categorical(levels)
    if name == "sigma_gaussian":
        return SigmaGaussian(levels)
    return DiscretisedLogistic(levels, mixtures)
