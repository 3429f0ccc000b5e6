"""Likeliest level of each pixel under a likelihood (models/likelihoods.py).

Shapes: B batch, D dimensions (pixels and channels), N = B D, P parameters of one dimension, L levels.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Law(Protocol):
    """The parts of a LevelLikelihood that the search uses."""

    parameters_per_dim: int
    levels: int

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor: ...

    def inner_levels(self, theta: Tensor, least: Tensor) -> tuple[Tensor, Tensor]: ...


def mode(law: Law, theta_BDP: Tensor) -> Tensor:
    """Return the likeliest level, the least of equal ones, uint8, shape (B, D): an end or one of ``inner_levels``."""
    if torch.compiler.is_exporting():  # a graph has no loop whose length depends on the data
        level_L = torch.arange(law.levels, device=theta_BDP.device)
        return law.log_prob(level_L, theta_BDP.unsqueeze(-2)).argmax(-1).to(torch.uint8)  # argmax takes the first of equal values
    theta_NP = theta_BDP.reshape(-1, law.parameters_per_dim)
    first_N, last_N = torch.zeros_like(theta_NP[:, 0]), torch.full_like(theta_NP[:, 0], law.levels - 1)
    highest_N, last_log_prob_N = law.log_prob(first_N, theta_NP), law.log_prob(last_N, theta_NP)
    best_N = torch.zeros_like(first_N, dtype=torch.uint8)
    level_N, end_N = law.inner_levels(theta_NP, torch.maximum(highest_N, last_log_prob_N))
    level_N, end_N = level_N.clamp(min=1), end_N.clamp(max=law.levels - 2)
    place_N, open_NP = torch.arange(len(theta_NP), device=theta_NP.device), theta_NP
    while len(place_N):
        open_N = level_N <= end_N
        if not bool(open_N.all()):
            place_N, level_N, end_N, open_NP = place_N[open_N], level_N[open_N], end_N[open_N], open_NP[open_N]
        log_prob_N = law.log_prob(level_N, open_NP)
        better_N = log_prob_N > highest_N[place_N]
        best_N[place_N[better_N]] = level_N[better_N].to(torch.uint8)
        highest_N[place_N[better_N]] = log_prob_N[better_N]
        level_N = level_N + 1
    best_N[last_log_prob_N > highest_N] = law.levels - 1
    return best_N.view(theta_BDP.shape[:-1])
