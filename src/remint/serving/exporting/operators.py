"""Operators that ONNX Runtime lacks, in double precision by others that it has. For graphs that are exported to ONNX.

ndtr              Hart (1968), as West, Better approximations to cumulative normal functions (2005), gives it
ndtri             Wichura, Algorithm AS 241: the percentage points of the normal distribution (1988)
searchsorted      comparison with every edge
solve_triangular  substitution, row by row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Coefficients of polynomials, the highest power first.
HART = (
    (
        3.52624965998911e-02, 0.700383064443688, 6.37396220353165, 33.912866078383, 112.079291497871, 221.213596169931,
        220.206867912376,
    ),
    (
        8.83883476483184e-02, 1.75566716318264, 16.064177579207, 86.7807322029461, 296.564248779674, 637.333633378831,
        793.826512519948, 440.413735824752,
    ),
)  # fmt: skip
CENTRE = (
    (
        2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
        1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080,
    ),
    (
        5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
        5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
    ),
)  # fmt: skip
TAIL = (
    (
        7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
        3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
        6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0,
    ),
)  # fmt: skip
FAR_TAIL = (
    (
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
        2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720,
    ),
    (
        2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
        1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0,
    ),
)  # fmt: skip


def ndtr(x: Tensor) -> Tensor:
    """Return the standard normal distribution function."""
    y = x.double().abs()
    below = torch.exp(-0.5 * y * y) * _tail(y)
    return torch.where(x > 0, 1.0 - below, below).to(x.dtype)


def log_ndtr(x: Tensor) -> Tensor:
    """Return the log of the standard normal distribution function."""
    y = x.double().abs()
    above = torch.log1p(-torch.exp(-0.5 * y * y) * _tail(y))
    return torch.where(x > 0, above, torch.log(_tail(y)) - 0.5 * y * y).to(x.dtype)


def _tail(y: Tensor) -> Tensor:
    """Return the distribution function at -y divided by exp(-y^2 / 2), for y of at least 0."""
    fraction = y + 0.65  # a continued fraction, for the far tail
    for number in (4, 3, 2, 1):
        fraction = y + number / fraction
    return torch.where(y < 7.07106781186547, _ratio(HART, y), 1.0 / (fraction * 2.506628274631))


def ndtri(share: Tensor) -> Tensor:
    """Return the standard normal quantile of a share in (0, 1)."""
    p = share.double()
    q = p - 0.5
    root = torch.sqrt(-torch.log(torch.minimum(p, 1.0 - p)))
    tail = torch.where(root <= 5.0, _ratio(TAIL, root - 1.6), _ratio(FAR_TAIL, root - 5.0))
    quantile = torch.where(q.abs() <= 0.425, q * _ratio(CENTRE, 0.180625 - q * q), torch.where(q < 0, -tail, tail))
    return quantile.to(share.dtype)


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    above, below = (torch.full_like(x, each[0]) for each in coefficients)
    for coefficient in coefficients[0][1:]:
        above = above * x + coefficient
    for coefficient in coefficients[1][1:]:
        below = below * x + coefficient
    return above / below


def sinh(x: Tensor) -> Tensor:
    return 0.5 * (torch.exp(x) - torch.exp(-x))


def searchsorted(edges: Tensor, x: Tensor, *, right: bool = False, **_: Any) -> Tensor:
    """Return the number of edges (..., L) below each x (..., N), or with ``right`` of those not above it."""
    edges, x = edges.unsqueeze(-2), x.unsqueeze(-1)
    return (x >= edges if right else x > edges).sum(-1)


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """Return x with a x = b, for a triangular a (C, C)."""
    assert left, "the flow's layers solve from the left"
    size = a.shape[0]
    rows: list[Tensor] = [b[0]] * size
    for place in reversed(range(size)) if upper else range(size):
        known = range(place + 1, size) if upper else range(place)
        rest = b[place]
        for other in known:
            rest = rest - a[place, other] * rows[other]
        rows[place] = rest if unitriangular else rest / a[place, place]
    return torch.stack(rows)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.special_ndtr.default: ndtr,
    torch.ops.aten.special_ndtri.default: ndtri,
    torch.ops.aten.special_log_ndtr.default: log_ndtr,
    torch.ops.aten.sinh.default: sinh,
    torch.ops.aten.searchsorted.Tensor: searchsorted,
    torch.ops.aten.linalg_solve_triangular.default: solve_triangular,
}
