"""log p(x) of a model with a density or a bound, of examples with or without a known class.

    exact density     log mean over k of p(x + u_k), u_k the place of x within its levels: a lower bound of log P(x) in the mean.
                      Where the trace of a continuous flow is estimated, half the variance of that may be added: an estimate
    evidence bound    IWAE-K: log mean over k of p(x, z_k) / q(z_k | x), a lower bound in the mean (Burda et al., 2016)

A conditional model without the class gives log sum over y of p(y) p(x | y), with the class shares of the training split.

Shapes: B batch, K draws of noise, N noise numbers of one draw, X the axes of one example.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from remint.models.contract import HasElbo, HasLogProb

DENSITY_DRAWS, BOUND_DRAWS = 8, 64  # K, where a caller names none


def noise_shape(model: Any, draws: int | None = None) -> tuple[int, int]:
    """Return K and N of the noise that ``log_prob`` takes. ``draws``: K; where nothing is random one is enough."""
    if isinstance(model, HasLogProb):
        return (draws or DENSITY_DRAWS) if model.density_noise else 1, model.density_noise
    assert isinstance(model, HasElbo)
    return draws or BOUND_DRAWS, model.latent_noise


def describe(model: Any, draws: int | None = None) -> str:
    """Return what ``log_prob`` returns, in words."""
    count, size = noise_shape(model, draws)
    if isinstance(model, HasLogProb):
        estimated = getattr(model, "estimator", {}).get("trace", "exact") != "exact"
        kind = "an estimate" if estimated else "a lower bound"
        return f"{kind} by {count} draws of dequantisation noise" if size else "the exact log density"
    return f"a lower bound, IWAE-{count}"


def log_prob(model: Any, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
    """Return log p(x) in nats, double precision, shape (B,). For a row that lacks values: of the observed ones."""
    if not model.conditional or y_B is not None:
        return _given(model, x_BX, noise_KBN, y_B)
    share_K = model.labels.share_K
    by_class = [
        _given(model, x_BX, noise_KBN, torch.full((len(x_BX),), y, device=x_BX.device)) + share.log()
        for y, share in enumerate(share_K)
        if share > 0
    ]
    return torch.logsumexp(torch.stack(by_class), 0)


def _given(model: Any, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None) -> Tensor:
    if isinstance(model, HasLogProb):
        found_KB = torch.stack([model.log_prob(x_BX, noise_BN, y_B) for noise_BN in noise_KBN])
    else:
        found_KB = model.elbo(x_BX, noise_KBN, y_B)
    return torch.logsumexp(found_KB.double(), 0) - math.log(len(noise_KBN))
