"""Shared drawing functions: colours, tiled images, histograms, intervals, plain axes, reproducible files.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from remint.records import Column, MetricValue

INK, QUIET, REAL, MODEL, OTHER = "#1f2933", "#8a94a0", "#1f2933", "#2563eb", "#c2410c"
LINES = ("#2563eb", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490")
BOLD, SMALL = 11, 9  # points
DPI = 150
GAP = 1  # pixels of an image between two images

Array = np.ndarray[Any, Any]


def original(value_N: Array, column: Column) -> Array:
    """Return the observed values of a column, in its original units."""
    observed_N = value_N[np.isfinite(value_N)].astype(np.float64)
    return observed_N * column.scale + column.mean if column.numeric else observed_N


def label_dates(axes: Axes, column: Column) -> None:
    """Label the horizontal axis of a column of dates with dates, of which there is room for two."""
    if column.type.startswith(("date", "timestamp")):
        from remint.data import rows  # late import: images do not need pyarrow

        axes.xaxis.set_major_locator(MaxNLocator(2))
        axes.xaxis.set_major_formatter(lambda at, _: rows.text(column, (at - column.mean) / column.scale, 4)[:10])


def bin_edges(values: list[Array]) -> Array:
    """Return the edges of 25 bins between the 0.5% and 99.5% points of all values."""
    together_N = np.concatenate(values)
    low, high = np.quantile(together_N, [0.005, 0.995]) if len(together_N) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, 26)


def shares(value_N: Array, edges: Array) -> Array:
    counts: Array = np.histogram(value_N, edges)[0] / max(1, len(value_N))
    return counts


def tile(x_NCHW: Array, levels: int, columns: int) -> Array:
    """Arrange images row by row in one image, with white gaps: float (rows, columns, 3), values in [0, 1]."""
    count, channels, height, width = x_NCHW.shape
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3))
    for index, image_CHW in enumerate(x_NCHW):
        top, left = GAP + (index // columns) * (height + GAP), GAP + (index % columns) * (width + GAP)
        colours = image_CHW[:3] if channels >= 3 else np.repeat(image_CHW[:1], 3, axis=0)
        sheet[top : top + height, left : left + width] = colours.transpose(1, 2, 0) / (levels - 1)
    return sheet


def show(axes: Axes, sheet: Array) -> None:
    axes.imshow(sheet, interpolation="nearest", vmin=0.0, vmax=1.0)
    axes.set_axis_off()


def interval(axes: Axes, height: float, measured: MetricValue, colour: str) -> None:
    """Draw a bar from low to high, a dot at the value, and the number above it."""
    axes.plot([measured.low, measured.high], [height, height], color=colour, lw=2.5, solid_capstyle="butt")
    axes.plot([measured.value], [height], "o", color=colour, ms=6)
    text, at = f"{measured.value:.3f}", (measured.value, height)
    axes.annotate(text, at, xytext=(0, 6), textcoords="offset points", ha="center", size=SMALL, color=colour)


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.grid(visible=True, axis="both", color="#e4e7eb", lw=0.6)
    axes.set_axisbelow(True)


def cycle(count: int) -> list[str]:
    return [LINES[index % len(LINES)] for index in range(count)]


def dot(curve: Mapping[str, Sequence[float]]) -> str | None:
    """Return a marker for curves so short that a line alone may not be visible."""
    return "o" if len(curve["step"]) < 3 else None


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None}, facecolor="white")
