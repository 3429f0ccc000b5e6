"""Draws from the posterior of a state with a standard normal prior, by annealed Hamiltonian Monte Carlo.

    target: N(s; 0, I) exp(heat * log_ratio(s))    heat rises from 0 to 1 over the first ANNEALED sweeps, then stays at 1

The first state is a draw of the prior. While the heat is low the chain moves between modes, and so it needs no start near
one (Neal, Annealed importance sampling, 2001). A sweep is one Hamiltonian trajectory, accepted or rejected (Neal, MCMC using
Hamiltonian dynamics, 2011). Each chain adapts its own step size, and stops this before its last sweeps, whose target is
exact. So a chain is a function of its own row and noise.

Shapes: B chains, S numbers of a state, N noise numbers, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from remint.models.labels import Labels
from remint.models.likelihoods import pick

ANNEALED, SETTLED = 30, 20  # sweeps with a rising heat, and at the target
LEAPS = 6  # gradients in a sweep
FIRST_STEP = 0.3  # of the leaps, in prior standard deviations
ACCEPTANCE = 0.75  # share of accepted trajectories that the step sizes aim at
ADAPTATION = 0.6  # change of the log of a step size in one sweep, for an acceptance that is off by 1; later ADAPTATION / 6

LogRatio = Callable[[Tensor, Tensor | None], Tensor]  # (s_BS, y_B) -> log of likelihood, shape (B,), differentiable in s


def noise_size(states: int, labels: Labels) -> int:
    """Return N, the standard normal numbers of one chain: first state, and momentum, step, acceptance and class of each sweep."""
    return states + (ANNEALED + SETTLED) * (states + 2 + labels.noise_size)


def draw(
    log_ratio: LogRatio, noise_BN: Tensor, states: int, labels: Labels, y_B: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return one state of each chain, shape (B, S), and its class.

    The classes are those given, else drawn with the states: given a state, a class has the probability
    share * exp(heat * log_ratio), normalised. None for an unconditional model.
    """
    state_BS, *noise_of_sweep = torch.split(noise_BN, [states] + [states + 2 + labels.noise_size] * (ANNEALED + SETTLED), dim=1)
    draws_class = labels.conditional and y_B is None
    value_B, slope_BS = _evaluate(log_ratio, state_BS, y_B) if not draws_class else (state_BS[:, 0], state_BS)
    log_step_B = torch.full_like(value_B, math.log(FIRST_STEP))
    for sweep, sweep_noise_BN in enumerate(noise_of_sweep):
        heat = min(1.0, (sweep + 1) / ANNEALED) ** 4
        momentum_BS, numbers_BN = sweep_noise_BN[:, :states], torch.special.ndtr(sweep_noise_BN[:, states:])
        if draws_class:
            y_B = _draw_class(log_ratio, state_BS, labels, heat, numbers_BN[:, 2])
            value_B, slope_BS = _evaluate(log_ratio, state_BS, y_B)
        step_B1 = (log_step_B.exp() * (0.8 + 0.4 * numbers_BN[:, 0])).unsqueeze(1)
        before_B = heat * value_B - 0.5 * (state_BS.square() + momentum_BS.square()).sum(1)
        new_BS, new_value_B, new_slope_BS = state_BS, value_B, slope_BS
        for leap in range(LEAPS):
            momentum_BS = momentum_BS + (0.5 if leap == 0 else 1.0) * step_B1 * (heat * new_slope_BS - new_BS)
            new_BS = new_BS + step_B1 * momentum_BS
            new_value_B, new_slope_BS = _evaluate(log_ratio, new_BS, y_B)
        momentum_BS = momentum_BS + 0.5 * step_B1 * (heat * new_slope_BS - new_BS)
        after_B = heat * new_value_B - 0.5 * (new_BS.square() + momentum_BS.square()).sum(1)
        accepted_B = (after_B - before_B).exp().clamp(max=1.0).nan_to_num(0.0)
        moves_B = numbers_BN[:, 1] < accepted_B
        state_BS = torch.where(moves_B.unsqueeze(1), new_BS, state_BS)
        value_B = torch.where(moves_B, new_value_B, value_B)
        slope_BS = torch.where(moves_B.unsqueeze(1), new_slope_BS, slope_BS)
        rate = ADAPTATION if sweep < ANNEALED else ADAPTATION / 6 if sweep < ANNEALED + SETTLED // 2 else 0.0
        log_step_B = log_step_B + rate * (accepted_B - ACCEPTANCE)
    return state_BS, y_B


def _evaluate(log_ratio: LogRatio, state_BS: Tensor, y_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the log ratio, shape (B,), and its gradient, shape (B, S)."""
    with torch.enable_grad():
        state_BS = state_BS.detach().requires_grad_(True)
        value_B = log_ratio(state_BS, y_B)
        (slope_BS,) = torch.autograd.grad(value_B.sum(), state_BS)
    return value_B.detach(), slope_BS


@torch.no_grad()
def _draw_class(log_ratio: LogRatio, state_BS: Tensor, labels: Labels, heat: float, share_B: Tensor) -> Tensor:
    """Draw the class of each chain given its state. ``share_B``: uniform numbers."""
    y_KB = torch.arange(labels.width, device=state_BS.device).unsqueeze(1).expand(-1, len(state_BS))
    log_ratio_BK = torch.stack([log_ratio(state_BS, y_B) for y_B in y_KB], dim=1)
    return pick(labels.share_K.log() + heat * log_ratio_BK.double(), share_B.double())
