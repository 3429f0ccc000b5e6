"""Contribution of each part of an example to its anomaly score.

    contribution of a part = score(x) - score(x with that part as in the nearest training example)

A part is a column of a row, or a pixel of an image; of a larger image a patch. All variants of one example have the same noise.

Shapes: B examples, J parts, X the axes of one example, D columns, H height, W width of the parts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from remint.data import rows
from remint.evaluation import drawing
from remint.models.scores import NEAR, Scorer
from remint.records import DataSpec
from remint.serving import blocks

MOST = 8  # examples in one picture
SIDE = 32  # parts in each direction of an image, at most
BARS = 8  # columns with the largest contributions

Array = np.ndarray[Any, Any]


def contributions(scorer: Scorer, by: str, x_X: Array, device: str = "cpu") -> Array:
    """Return the contribution of each part: (D,) of a row, (H, W) of an image."""
    near_X = nearest(scorer, x_X)
    place_X, shape = parts(scorer.spec)
    variant_JX = np.stack([x_X, *(np.where(place_X == part, near_X, x_X) for part in range(math.prod(shape)))])
    draws, size = scorer.noise_shape
    noise_1KN = blocks.content_noise(torch.from_numpy(x_X[None].copy()), draws * size, "score").view(1, draws, size)
    names = scorer.needs(by)

    def of_block(x_BX: Tensor, _: Tensor | None) -> Tensor:
        noise_KBN = noise_1KN.expand(len(x_BX), -1, -1).transpose(0, 1)
        return scorer.parts(x_BX, noise_KBN.to(x_BX.device, scorer.dtype), names)

    part_JS = torch.from_numpy(np.concatenate(list(blocks.apply(of_block, variant_JX, None, device))))
    score_J = scorer.score(by, dict(zip(names, part_JS.T, strict=True))).cpu().numpy()
    found: Array = (score_J[0] - score_J[1:]).reshape(shape)
    return found


def parts(spec: DataSpec) -> tuple[Array, tuple[int, ...]]:
    """Return the number of the part that each value of an example belongs to, int64 (X), and the shape of the parts."""
    if spec.is_table:
        return np.arange(len(spec.columns)), (len(spec.columns),)
    channels, height, width = spec.image
    patch = math.ceil(max(height, width) / SIDE)
    shape = (math.ceil(height / patch), math.ceil(width / patch))
    place_HW = np.arange(height)[:, None] // patch * shape[1] + np.arange(width) // patch
    return np.broadcast_to(place_HW, (channels, height, width)), shape


def nearest(scorer: Scorer, x_X: Array) -> Array:
    """Return the training example of the reference that is nearest to an example."""
    near_RX = scorer.reference[NEAR]
    x_1F = scorer.features(torch.from_numpy(x_X[None].copy()).to(near_RX.device))
    place = int((scorer.features(near_RX) - x_1F).square().sum(1).argmin())
    found: Array = near_RX[place].cpu().numpy()
    return found


def draw(path: Path, scorer: Scorer, by: str, x_BX: Array, titles: list[str], device: str = "cpu") -> None:
    """Draw the contributions for examples, at most MOST, one below the other."""
    found = [contributions(scorer, by, x_X, device) for x_X in x_BX[:MOST]]
    figure = Figure(figsize=(7.0, 1.9 * len(found) + 0.3), dpi=drawing.DPI)
    for place, (x_X, each, title) in enumerate(zip(x_BX, found, titles, strict=False)):
        if scorer.spec.is_table:
            _bars(figure, (len(found), place), x_X, each, title, scorer.spec)
        else:
            _maps(figure, (len(found), place), x_X, nearest(scorer, x_X), each, title, scorer.spec)
    figure.tight_layout()
    drawing.save(figure, path)


def _maps(figure: Figure, at: tuple[int, int], x_X: Array, near_X: Array, found_HW: Array, title: str, spec: DataSpec) -> None:
    """Draw an image, its nearest training example and the contributions: red raises the score, blue lowers it."""
    count, place = at
    for column, (image_X, name) in enumerate(((x_X, title), (near_X, "nearest training example"))):
        axes = figure.add_subplot(count, 3, 3 * place + 1 + column)
        drawing.show(axes, drawing.tile(image_X[None], spec.levels, 1))
        axes.set_title(name, size=drawing.SMALL, color=drawing.INK)
    axes = figure.add_subplot(count, 3, 3 * place + 3)
    most = float(np.abs(found_HW).max()) or 1.0
    drawn = axes.imshow(found_HW, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("contribution to the score", size=drawing.SMALL, color=drawing.INK)
    figure.colorbar(drawn, ax=axes).ax.tick_params(labelsize=7)


def _bars(figure: Figure, at: tuple[int, int], x_D: Array, found_D: Array, title: str, spec: DataSpec) -> None:
    """Draw the columns with the largest contributions, with the row's values."""
    count, place = at
    axes = figure.add_subplot(count, 1, place + 1)
    order = np.argsort(-np.abs(found_D))[:BARS][::-1]
    axes.barh(range(len(order)), found_D[order], color=[drawing.OTHER if found_D[d] > 0 else drawing.MODEL for d in order])
    axes.set_yticks(range(len(order)), [f"{spec.columns[d].name} = {_value(spec, d, x_D[d])}" for d in order])
    axes.set_title(title, size=drawing.SMALL, color=drawing.INK, loc="left")
    drawing.plain(axes)
    axes.tick_params(labelsize=7)


def _value(spec: DataSpec, place: int, value: float) -> str:
    return "missing" if np.isnan(value) else rows.text(spec.columns[place], float(value), 4)
