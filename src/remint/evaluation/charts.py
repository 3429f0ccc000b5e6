"""The pictures of data and of cost: before and after a drift, quality against latency, growth. Arrays and a path in, a PNG out.

Drawn as evaluation/plots.py draws, in its colours.

Shapes: N examples, D columns of a table, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from remint.evaluation.plots import BOLD, DPI, INK, MODEL, SMALL, _edges, _original, _plain, _save, _shares
from remint.records import Column, Drift

MOST_COLUMNS = 12
BEFORE, AFTER = INK, MODEL

Array = np.ndarray[Any, Any]


def images_before_and_after(path: Path, before_CHW: Array, after_CHW: Array, drift: Drift) -> None:
    """The mean image before and after, values in [0, 1], and the difference of the channels' means, red where it is brighter."""
    figure = Figure(figsize=(7.2, 3.1), dpi=DPI)
    rows = (drift.before["train"], drift.after["train"])
    for place, (name, mean_CHW) in enumerate(zip(("before", "after"), (before_CHW, after_CHW), strict=True), start=1):
        axes = figure.add_subplot(1, 3, place)
        shown = mean_CHW[:3].transpose(1, 2, 0) if len(mean_CHW) >= 3 else mean_CHW[0]
        axes.imshow(shown, cmap="gray", interpolation="nearest", vmin=0.0, vmax=1.0)
        _frame(axes, f"mean {name}, {rows[place - 1]:,} images")
    difference_HW = (after_CHW - before_CHW).mean(axis=0)
    most = max(float(np.abs(difference_HW).max()), 1e-9)
    axes = figure.add_subplot(1, 3, 3)
    axes.imshow(difference_HW, cmap="RdBu_r", interpolation="nearest", vmin=-most, vmax=most)
    _frame(axes, f"after - before, ±{most:.2g} of the range")
    _title(figure, drift)
    _save(figure, path)


def columns_before_and_after(path: Path, before_ND: Array, after_ND: Array, columns: Sequence[Column], drift: Drift) -> None:
    """How the values of each column are spread: those that changed first, in bold; at most 12."""
    changed = list(dict.fromkeys(change.of for change in drift.changed))
    rank = {name: place for place, name in enumerate(changed)}
    order = sorted(range(len(columns)), key=lambda d: rank.get(columns[d].name, len(rank)))
    shown = order[:MOST_COLUMNS]
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(max(5.0, 2.4 * across), 0.9 + 1.7 * down), dpi=DPI)
    for place, d in enumerate(shown, start=1):
        axes, column = figure.add_subplot(down, across, place), columns[d]
        before_N, after_N = (_original(x_ND[:, d], column) for x_ND in (before_ND, after_ND))
        edges = np.arange(len(column.categories) + 1) - 0.5 if column.categories else _edges([before_N, after_N])
        axes.stairs(_shares(before_N, edges), edges, fill=True, color="#cbd2d9", label="before")
        axes.stairs(_shares(after_N, edges), edges, color=AFTER, lw=1.4, label="after")
        if column.categories:
            few = len(column.categories) <= 6
            axes.set_xticks(range(len(column.categories)), [name[:8] if few else "" for name in column.categories])
        bold = "bold" if column.name in changed else "normal"
        axes.set_title(column.name, size=SMALL, color=INK, loc="left", weight=bold)
        axes.set_yticks([])
        _plain(axes)
    figure.axes[0].legend(frameon=False, fontsize=SMALL - 2)
    _title(figure, drift)
    _save(figure, path)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, size=SMALL, color=INK, loc="left")
    axes.set_axis_off()


def _title(figure: Figure, drift: Drift) -> None:
    rows = f"{drift.added:,} examples added, {drift.removed:,} removed, {drift.kept:,} stayed"
    words = f"Training data since the champion: {rows}; {len(drift.changed)} of {drift.tested} statistics changed"
    figure.suptitle(words, x=0.02, ha="left", size=BOLD - 2, color=INK, weight="bold")
    figure.tight_layout()
