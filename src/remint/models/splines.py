"""Monotone rational-quadratic splines on an interval, and the identity outside it.

Shapes: ... any leading shape, K bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from remint.models.layers import running_sums

MIN_BIN = 1e-3  # least width and height of a bin, as a fraction of the interval: the inverse of a flatter slope loses digits
MIN_DERIVATIVE = 1e-3


def parameter_count(bins: int) -> int:
    """Return the count of numbers that describe one spline: widths, heights, and derivatives at the inner knots."""
    return 3 * bins - 1


def rational_quadratic(x: Tensor, theta: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Apply the spline of Durkan et al., Neural Spline Flows (2019), with linear (identity) tails.

    All-zero ``theta`` is the identity. The function and its first derivative are continuous.

    Arguments:
        x: points, shape (...).
        theta: unconstrained widths, heights, derivatives, shape (..., 3 K - 1).
        bound: the spline acts on [-bound, bound].
        inverse: apply the inverse function instead.

    Returns:
        The value and the log of the derivative (in the requested direction), each of shape (...).
    """
    bins = (theta.shape[-1] + 1) // 3
    inside = (x > -bound) & (x < bound)
    point = torch.where(inside, x, torch.zeros_like(x)).unsqueeze(-1)
    left, width = _bins(theta[..., :bins], bound)
    bottom, height = _bins(theta[..., bins : 2 * bins], bound)
    shift = math.log(math.expm1(1.0 - MIN_DERIVATIVE))  # a zero parameter is a derivative of one
    inner = MIN_DERIVATIVE + F.softplus(theta[..., 2 * bins :] + shift)
    derivative = F.pad(inner, (1, 1), value=1.0)

    edges = bottom if inverse else left
    k = (point >= edges[..., 1:]).sum(-1, keepdim=True)
    x0, w, y0, h, d0, d1 = (v.gather(-1, k).squeeze(-1) for v in (left, width, bottom, height, derivative, derivative[..., 1:]))
    point = point.squeeze(-1)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = point - y0
        a = h * (s - d0) + rise * bend
        b = h * d0 - rise * bend
        c = -s * rise
        root = (b.square() - 4 * a * c).clamp(min=0.0).sqrt()
        # The root in [0, 1], in the form without a difference of near numbers. If b < 0, a is positive.
        rising = b >= 0
        t = torch.where(rising, 2 * c / (-b - root), (root - b) / torch.where(rising, torch.ones_like(a), 2 * a))
        value = x0 + t * w
    else:
        t = (point - x0) / w
        value = y0 + h * (s * t.square() + d0 * t * (1 - t)) / (s + bend * t * (1 - t))
    slope = s.square() * (d1 * t.square() + 2 * s * t * (1 - t) + d0 * (1 - t).square()) / (s + bend * t * (1 - t)).square()
    log_slope = torch.where(inside, slope.log(), torch.zeros_like(x))
    return torch.where(inside, value, x), -log_slope if inverse else log_slope


def _bins(theta: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return left edge and size of each bin of [-bound, bound]: shapes (..., K)."""
    size = 2 * bound * (MIN_BIN + (1 - MIN_BIN * theta.shape[-1]) * theta.softmax(-1))
    return F.pad(running_sums(size[..., :-1]), (1, 0)) - bound, size
