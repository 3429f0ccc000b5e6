"""Apply a model to many examples in blocks of one size, so that a value depends on neither its neighbours nor their number.

The rounding of a matrix product depends on its number of rows. A last block is therefore filled up, and the rest dropped.
Noise is a function of the example's content: equal examples have equal values, in any order.

Shapes: N examples, B examples of one block, X the axes of one, D noise numbers.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.blocks import LARGEST_BLOCK, Blocks
from remint.data.identity import digests
from remint.errors import SettingsError
from remint.models.draw import BLOCK

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]  # examples done, of all


def silent(done: int, total: int) -> None:
    """Show no progress."""


def apply(
    function: Callable[[Tensor, Tensor | None], Tensor],
    x_NX: Blocks | Array,
    y_N: Array | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    block: int = BLOCK,
) -> Iterator[Array]:
    """Yield the results of ``function(x_BX, y_B)`` for each block, without gradients. Axis 0 of a result is the example."""
    x_NX = Blocks.of(x_NX)
    at, size = 0, max(1, x_NX.nbytes // max(1, len(x_NX)))
    for x_MX in x_NX.read(block * max(1, LARGEST_BLOCK // (block * size))):
        for start in range(0, len(x_MX), block):
            x_BX = x_MX[start : start + block]
            count, fill = len(x_BX), np.zeros(block, np.int64)
            fill[: len(x_BX)] = np.arange(len(x_BX))  # the rest repeats the first example
            y_B = None if y_N is None else torch.from_numpy(y_N[at : at + count][fill]).to(device)
            with torch.no_grad():
                result = function(torch.from_numpy(np.ascontiguousarray(x_BX[fill])).to(device), y_B)
            at += count
            progress(at, len(x_NX))
            yield result[:count].cpu().numpy()


def whole_seed(seed: Any) -> int:
    """Return a seed as an integer of Python, since the text of NumPy's differs. Raises SettingsError if it is none."""
    try:
        return int(operator.index(seed))
    except TypeError as error:
        raise SettingsError(f"seed {seed!r}: expected a whole number") from error


def content_noise(x_BX: Tensor, size: int, *seed: int | str) -> Tensor:
    """Return standard normal noise, float32 (B, size): a function of (seed, content of each example) alone.

    A word is SplitMix64 of the example's digest and the place (Steele et al., Fast splittable pseudorandom number
    generators, 2014); a normal number is the quantile at its first 53 bits.
    """
    seed = tuple(each if isinstance(each, str) else whole_seed(each) for each in seed)
    word = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "little")
    key_B = digests(x_BX.cpu().numpy(), word, occurrences=False)
    with np.errstate(over="ignore"):
        word_BD = key_B[:, None] + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word_BD = (word_BD ^ (word_BD >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word_BD = (word_BD ^ (word_BD >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word_BD ^= word_BD >> np.uint64(31)
    uniform_BD = ((word_BD >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise_BD: Tensor = torch.special.ndtri(torch.from_numpy(uniform_BD)).float()
    return noise_BD.to(x_BX.device)
