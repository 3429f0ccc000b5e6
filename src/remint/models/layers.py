"""Building blocks shared by the families.

Shapes: B batch, C channels, H height, W width, D = C H W dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
            layers.append(Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose zeros depend on the seed, the step and a value's place in the global batch alone.

    So any number of processes drops the same values. The training sets ``key`` before each phase. Without it, and in eval mode,
    this is torch's dropout.

    A value is dropped if a hash of its place and of the key is among the lowest p 2^32 numbers: lowbias32 of the place (Wellons,
    Prospecting for hash functions, 2018), which is kept, and its last two multiplications once more after the key is put in.
    A layer that is called twice with one key drops the same values twice.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.key: Tensor | None = None  # int32, shape (); on the device of the input
        self.first = 0  # row of the global batch that this process's first example is
        self._places: tuple[Any, Tensor] | None = None  # of the last input, with its form

    def forward(self, x_BX: Tensor) -> Tensor:
        if self.key is None or not self.training:
            return F.dropout(x_BX, self.p, self.training)
        word_BX = _mixed(self._hashed_places(x_BX) ^ self.key)
        kept_BX = word_BX >= round(self.p * 2**32) - 2**31
        return torch.where(kept_BX, x_BX * (1.0 / (1.0 - self.p)), 0.0)

    def _hashed_places(self, x_BX: Tensor) -> Tensor:
        form = self.first, x_BX.shape, x_BX.device
        if torch.compiler.is_compiling() or self._places is None or self._places[0] != form:
            first, size = self.first * x_BX[0].numel(), x_BX.numel()
            place_BX = torch.arange(first, first + size, dtype=torch.int32, device=x_BX.device).view(x_BX.shape)
            hashed_BX = _xor_shifted(_mixed(_xor_shifted(place_BX, 16)), 16)
            if torch.compiler.is_compiling():
                return hashed_BX
            self._places = form, hashed_BX
        return self._places[1]

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _mixed(word_X: Tensor) -> Tensor:
    """Return the middle of lowbias32: two multiplications, in place."""
    return _xor_shifted(word_X.mul_(0x7FEB352D), 15).mul_(0x846CA68B - 2**32)


def _xor_shifted(word_X: Tensor, shift: int) -> Tensor:
    """Return x xor (x >> shift) in place. A shift of a negative int32 copies its sign, so the copies are masked."""
    return word_X.bitwise_xor_((word_X >> shift).bitwise_and_(2 ** (32 - shift) - 1))


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
