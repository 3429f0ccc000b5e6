"""How often the 90% intervals of imputed values cover the truth, on examples from which values are removed at random.

A number or pixel is covered if it lies in its interval. A category is covered if it is among the most frequent categories
that together have 90% of the draws. Discrete values are covered more often than 90%, because an interval cannot end within one.
Therefore the rank of the truth among the draws is judged too, with equal values in random order: it is within the level in 90% of
all cases if the model is right, also for discrete numbers.

Shapes: N examples, G with removed values, D draws, X the axes of one example.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from remint.data.blocks import Blocks
from remint.data.sampler import spaced_indices
from remint.models.contract import Model
from remint.records import DataSpec, Record
from remint.serving.blocks import content_noise
from remint.serving.imputation.chains import DRAWS, LEVEL, TAILS, Part, complete, shares

EXAMPLES = {"image": 32, "table": 64}  # evenly spaced, of those given: chains of images take long
REMOVED = {"image": 0.5, "table": 0.3}  # share of an image's pixels, of a row's values

Array = np.ndarray[Any, Any]


class ImputationCoverage(Record):
    """Share of removed values that their intervals cover."""

    level: float
    covered: float
    low: float  # limits of the 95% interval, with the examples as clusters
    high: float
    ranked: float | None  # share of removed numbers whose rank among the draws is within the level; None: only categories
    cells: int
    examples: int
    removed: float  # share of the values that were removed at random
    draws: int
    seed: int
    columns: dict[str, float] = {}  # of a table: the share of each column


def coverage(
    model: Model,
    spec: DataSpec,
    x_NX: Array,
    y_N: Array | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    most: int | None = None,
) -> ImputationCoverage:
    """Remove values of examples, impute them, and compare. ``x_NX``: in the model's form, such as the calibration split.

    ``y_N``: their classes, which a conditional model is given. ``model``: a CanImpute.
    """
    kind = "table" if spec.is_table else "image"
    share = REMOVED[kind]
    take_N = spaced_indices(len(x_NX), EXAMPLES[kind] if most is None else most)
    x_NX, y_N = np.asarray(x_NX[take_N]), None if y_N is None or not model.conditional else np.asarray(y_N[take_N])
    removed_NX = remove(spec, x_NX, share, seed)
    hidden_NX = np.where(removed_NX, np.nan, x_NX).astype(np.float32) if spec.is_table else x_NX
    missing_NX = np.isnan(hidden_NX) if spec.is_table else removed_NX
    covered_NX, ranked_NX = np.zeros_like(removed_NX), np.zeros(removed_NX.shape)
    at = 0
    for part in complete(model, spec, Blocks.of(hidden_NX), y_N, missing_NX, draws, seed):
        place_G = at + part.at_G
        covered_NX[place_G] = covers(spec, part, x_NX[place_G]) & removed_NX[place_G]
        ranked_NX[place_G] = within_ranks(part.drawn_GDX, x_NX[place_G])
        at += len(part.x_MX)
    cells_N, hits_N = (each.reshape(len(x_NX), -1).sum(1) for each in (removed_NX, covered_NX))
    found, half = _ratio(hits_N, cells_N)
    number_NX = removed_NX & (np.array([column.numeric for column in spec.columns]) if spec.is_table else True)
    of_column = removed_NX.sum(0) if spec.is_table else ()
    return ImputationCoverage(
        level=LEVEL,
        covered=found,
        low=max(0.0, found - half),
        high=min(1.0, found + half),
        ranked=float(ranked_NX[number_NX].mean()) if number_NX.any() else None,
        cells=int(cells_N.sum()),
        examples=len(x_NX),
        removed=share,
        draws=draws,
        seed=seed,
        columns={
            column.name: float(covered_NX[:, d].sum() / of_column[d]) for d, column in enumerate(spec.columns) if of_column[d]
        },
    )


def remove(spec: DataSpec, x_NX: Array, share: float, *seed: int | str) -> Array:
    """Return which values are removed, bool (N, X): each observed value of a row, each pixel of an image, with this probability.

    All channels of a pixel are removed together. The choice is a function of the seed and the example.
    """
    size = spec.dims if spec.is_table else spec.image[1] * spec.image[2]
    uniform_NS = torch.special.ndtr(content_noise(torch.from_numpy(np.array(x_NX)), size, "removed", *seed)).numpy()
    if spec.is_table:
        removed_ND: Array = (uniform_NS < share) & ~np.isnan(x_NX)
        return removed_ND
    return np.broadcast_to((uniform_NS < share).reshape(-1, 1, *spec.image[1:]), x_NX.shape).copy()


def covers(spec: DataSpec, part: Part, x_GX: Array) -> Array:
    """Return whether the interval, or the set of categories, of each value has the true one, bool (G, X)."""
    low_GX, high_GX, truth_GX = (_as_shown(spec, each) for each in (part.low_GX, part.high_GX, x_GX))
    covered_GX: Array = (low_GX <= truth_GX) & (truth_GX <= high_GX)
    for place, column in enumerate(spec.columns):
        if column.categories:
            share_GK = shares(part.drawn_GDX[:, :, place], len(column.categories))
            code_G = np.nan_to_num(x_GX[:, place]).astype(np.int64)
            own_G1 = np.take_along_axis(share_GK, code_G[:, None], 1)
            before_G = np.where(share_GK > own_G1, share_GK, 0.0).sum(1)  # of the categories that are more frequent
            covered_GX[:, place] = (before_G < LEVEL - 1e-9) & (own_G1[:, 0] > 0)
    return covered_GX


def within_ranks(drawn_GDX: Array, x_GX: Array) -> Array:
    """Return the probability that the rank of each value among its draws is within the level, (G, X).

    The D draws and the value have D + 1 places; a value that equals some draws is as likely at each of their places.
    """
    draws = drawn_GDX.shape[1]
    below_GX = (drawn_GDX < x_GX[:, None]).sum(1)
    end_GX = (drawn_GDX <= x_GX[:, None]).sum(1) + 1
    first, last = TAILS[0] * (draws + 1), TAILS[1] * (draws + 1)
    inside_GX: Array = (np.minimum(end_GX, last) - np.maximum(below_GX, first)).clip(0) / (end_GX - below_GX)
    return inside_GX


def _as_shown(spec: DataSpec, x_GX: Array) -> Array:
    """Return values as a person sees them: whole numbers and pixels are rounded."""
    if not spec.is_table:
        return np.rint(x_GX)
    shown_GD = x_GX.astype(np.float64)
    for place, column in enumerate(spec.columns):
        if column.whole:
            shown_GD[:, place] = np.rint(shown_GD[:, place] * column.scale + column.mean)
    return shown_GD


def _ratio(hits_N: Array, cells_N: Array) -> tuple[float, float]:
    """Return the share of hits and half of its 95% interval, with examples as clusters."""
    total = max(1, int(cells_N.sum()))
    found = float(hits_N.sum() / total)
    spread = float(np.square(hits_N - found * cells_N).sum()) ** 0.5 / total
    return found, 1.96 * spread * (len(cells_N) / max(1, len(cells_N) - 1)) ** 0.5
