"""Building blocks shared by the families.

Shapes: B batch, C channels, H height, W width, D = C H W dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from remint.records import DataSpec


def mlp(sizes: list[int], activation: Callable[[], nn.Module], *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers of ``sizes``; after each except the last: LayerNorm (if ``norm``), activation, dropout."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers.append(nn.Linear(fan_in, fan_out))
        if norm:
            layers.append(nn.LayerNorm(fan_out))
        layers.append(activation())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def last_linear(net: nn.Sequential) -> nn.Linear:
    """Return the output layer of an ``mlp``."""
    layer = net[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def at_least_single(x: Tensor) -> Tensor:
    """Return half precision as single, and single and double unchanged. For autocast results that need exact sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def running_sums(x: Tensor) -> Tensor:
    """Return the sums of the first 1, 2, ... numbers along the last dimension, for a few numbers.

    Equal to ``cumsum``, which has no deterministic algorithm for floating point on CUDA.
    """
    return torch.stack(list(itertools.accumulate(x.unbind(-1))), dim=-1) if x.shape[-1] else x


def to_unit(x: Tensor, levels: int) -> Tensor:
    """Map levels 0 .. levels-1 to [-1, 1]."""
    return x * (2.0 / (levels - 1)) - 1.0


def to_levels(x: Tensor, levels: int) -> Tensor:
    """Map [-1, 1] to the nearest level, uint8. Values outside become the nearest end."""
    return ((x + 1.0) * ((levels - 1) / 2.0)).round().clamp(0, levels - 1).to(torch.uint8)


def normal_log_density(z: Tensor) -> Tensor:
    """Return the log density of the standard normal distribution, element by element."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def in_unit(nats: Tensor, spec: DataSpec) -> Tensor:
    """Convert nats per example to the reporting unit of such data: bits per dimension, or nats of a row."""
    return nats / spec.nats_per_unit
