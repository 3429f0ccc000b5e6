"""Completions of examples in the model's form: several draws of what is missing given what is observed.

With D draws the k-th least has the quantile k / (D + 1), so the 90% interval of a value covers as often as it says if the model
is right, from 19 draws on.

Shapes: N examples, M examples of one part, G of them with gaps, B a block of chains, D draws, X the axes of one example,
P numbers of a packed example.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.blocks import LARGEST_BLOCK, Blocks
from remint.models.contract import CanImpute
from remint.records import DataSpec
from remint.serving import blocks
from remint.serving.blocks import Progress, content_noise, silent

DRAWS = 20
LEVEL = 0.9  # of the intervals
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
CHAINS = 128  # in every pass of a model: a chain enlarges the rounding of a pass of another size, step by step
NUMBERS = 2**22  # of noise in a pass, above which it has fewer chains

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Consecutive examples in the model's form, completed."""

    x_MX: Array  # with each gap filled
    missing_MX: Array  # bool
    at_G: Array  # places of the examples with gaps
    low_GX: Array  # of the 90% interval, float64; for a category without meaning
    high_GX: Array
    drawn_GDX: Array


def complete(
    model: Any,
    spec: DataSpec,
    x_NX: Blocks,
    y_N: Array | None = None,
    missing_NX: Array | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Iterator[Part]:
    """Yield the examples, completed, in parts of bounded memory. ``model``: a CanImpute. ``missing_NX``: None: NaN of rows."""
    model = copy.deepcopy(model).double()  # for the same reason as CHAINS
    at, numbers = 0, draws * (2 * spec.dims + 1)
    for x_MX in x_NX.read(max(1, LARGEST_BLOCK // (4 * numbers))):
        missing_MX = np.isnan(x_MX) if missing_NX is None else _rows(missing_NX, at, len(x_MX))
        y_M = None if y_N is None else y_N[at : at + len(x_MX)]
        at += len(x_MX)
        yield _complete(model, spec, x_MX, missing_MX, y_M, draws, seed, device)
        progress(at, len(x_NX))


def _rows(missing_NX: Array, at: int, count: int) -> Array:
    """Return the masks of some examples; one mask is that of all."""
    if len(missing_NX) == 1:
        return np.broadcast_to(missing_NX, (count, *missing_NX.shape[1:]))
    return missing_NX[at : at + count]


def _complete(
    model: CanImpute, spec: DataSpec, x_MX: Array, missing_MX: Array, y_M: Array | None, draws: int, seed: int, device: str
) -> Part:
    at_G = np.flatnonzero(missing_MX.reshape(len(x_MX), -1).any(1))
    x_GX, missing_GX = x_MX[at_G], missing_MX[at_G]
    drawn_GDX = np.empty((len(at_G), draws, *x_GX.shape[1:]), x_MX.dtype)
    if len(at_G):
        observed_GP = (~missing_GX).reshape(len(at_G), -1)
        packed_GP = np.concatenate([np.where(observed_GP, x_GX.reshape(len(at_G), -1), 0), observed_GP], axis=1)
        number_D1 = np.arange(draws)[:, None]
        chains = [np.concatenate([np.tile(packed_P, (draws, 1)), number_D1], axis=1) for packed_P in packed_GP]
        packed_BP = np.concatenate(chains).astype(np.float32)
        y_B = None if y_M is None else np.repeat(y_M[at_G], draws)
        size = max(1, min(CHAINS, NUMBERS // model.impute_noise))
        parts = blocks.apply(lambda packed, y: _draw(model, spec, packed, y, seed), packed_BP, y_B, device, block=size)
        drawn_GDX = np.concatenate(list(parts)).reshape(drawn_GDX.shape)
    low_GX, high_GX = np.quantile(drawn_GDX.astype(np.float64), TAILS, axis=1, method="weibull")
    x_MX = x_MX.copy()
    x_MX[at_G] = np.where(missing_GX, _centre(spec, drawn_GDX), x_GX)
    return Part(x_MX, missing_MX, at_G, low_GX, high_GX, drawn_GDX)


def _draw(model: CanImpute, spec: DataSpec, packed_BP: Tensor, y_B: Tensor | None, seed: int) -> Tensor:
    """Return one completion of each packed example: its values, which of them are observed, and the draw's number."""
    noise_BN = content_noise(packed_BP, model.impute_noise, "impute", seed).double()
    values_BP, observed_BP, _ = torch.split(packed_BP, [spec.dims, spec.dims, 1], dim=1)
    x_BX = values_BP.view(-1, *spec.shape)
    completed_BX: Tensor = model.impute(
        x_BX if spec.is_table else x_BX.to(torch.uint8), observed_BP.view_as(x_BX) > 0, noise_BN, y_B
    )
    return completed_BX


def _centre(spec: DataSpec, drawn_GDX: Array) -> Array:
    """Return the mean of numbers and pixels over the draws, and the most frequent category."""
    mean_GX: Array = drawn_GDX.mean(1, dtype=np.float64)
    for place, column in enumerate(spec.columns):
        if column.categories:
            mean_GX[:, place] = shares(drawn_GDX[:, :, place], len(column.categories)).argmax(1)
    centre_GX: Array = (mean_GX if spec.is_table else np.rint(mean_GX)).astype(drawn_GDX.dtype)
    return centre_GX


def shares(drawn_GD: Array, size: int) -> Array:
    """Return the share of each category among the draws, (G, size)."""
    share_GK: Array = (drawn_GD[:, :, None] == np.arange(size)).mean(1)
    return share_GK
