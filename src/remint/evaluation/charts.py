"""Charts of drift, of quality against latency, of growth, and of seed-to-seed variation. Arrays and a path in, a PNG out.

The style and the colours are those of evaluation/plots.py.

Shapes: N examples, D columns of a table, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from remint.evaluation.comparison import COUNT, SIZE, Cost, Growth
from remint.evaluation.drawing import BOLD, DPI, INK, LINES, MODEL, SMALL, bin_edges, label_dates, original, plain, save, shares
from remint.records import Column, Drift

if TYPE_CHECKING:  # this module needs no database
    from remint.stores.ledger.spreads import SeedSpread

MOST_COLUMNS = 12

Array = np.ndarray[Any, Any]


def images_before_and_after(path: Path, before_CHW: Array, after_CHW: Array, drift: Drift) -> None:
    """Draw the mean image before and after, values in [0, 1], and the difference of the channel means, red where brighter."""
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
    save(figure, path)


def columns_before_and_after(path: Path, before_ND: Array, after_ND: Array, columns: Sequence[Column], drift: Drift) -> None:
    """Draw a histogram of each column, at most 12. Changed columns come first, with a bold title."""
    changed = list(dict.fromkeys(change.of for change in drift.changed))
    rank = {name: place for place, name in enumerate(changed)}
    order = sorted(range(len(columns)), key=lambda d: rank.get(columns[d].name, len(rank)))
    shown = order[:MOST_COLUMNS]
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(max(5.0, 2.4 * across), 0.9 + 1.7 * down), dpi=DPI)
    for place, d in enumerate(shown, start=1):
        axes, column = figure.add_subplot(down, across, place), columns[d]
        before_N, after_N = (original(x_ND[:, d], column) for x_ND in (before_ND, after_ND))
        edges = np.arange(len(column.categories) + 1) - 0.5 if column.categories else bin_edges([before_N, after_N])
        axes.stairs(shares(before_N, edges), edges, fill=True, color="#cbd2d9", label="before")
        axes.stairs(shares(after_N, edges), edges, color=MODEL, lw=1.4, label="after")
        if column.categories:
            few = len(column.categories) <= 6
            axes.set_xticks(range(len(column.categories)), [name[:8] if few else "" for name in column.categories])
        bold = "bold" if column.name in changed else "normal"
        axes.set_title(column.name, size=SMALL, color=INK, loc="left", weight=bold)
        axes.set_yticks([])
        plain(axes)
        label_dates(axes, column)
    figure.axes[0].legend(frameon=False, fontsize=SMALL - 2)
    _title(figure, drift)
    save(figure, path)


def comparison(path: Path, models: Sequence[Cost], growth: Sequence[Growth], metrics: Sequence[str]) -> None:
    """Draw quality against the seconds of 1,000 samples, and the growth of seconds and parameters.

    Args:
        metrics: the comparable metrics; the first is drawn.
    """
    colours = {row.model: LINES[place % len(LINES)] for place, row in enumerate(models)}
    figure = Figure(figsize=(9.6, 7.0), dpi=DPI)
    _quality(figure.add_subplot(2, 2, 1), models, metrics, colours)
    wider = " or ".join(sorted({"the columns" if len(row.shape) == 1 else "the sides" for row in growth}, reverse=True))
    by_size = [row for row in growth if row.grows == SIZE]
    by_count = [row for row in growth if row.grows == COUNT]
    _seconds(figure.add_subplot(2, 2, 2), by_size, colours, f"times {wider}, 1,000 examples")
    _seconds(figure.add_subplot(2, 2, 3), by_count, colours, "examples")
    axes = figure.add_subplot(2, 2, 4)
    for model, colour in colours.items():
        known = [(row.value, row.parameters) for row in by_size if row.model == model and row.parameters]
        axes.plot([x for x, _ in known], [count for _, count in known], color=colour, marker="o", ms=4, lw=1.4)
    _log(axes, [row.value for row in by_size], f"times {wider}", "parameters")
    figure.tight_layout()
    save(figure, path)


def _quality(axes: Axes, models: Sequence[Cost], metrics: Sequence[str], colours: Mapping[str, str]) -> None:
    """Draw a cross for each model: its intervals of quality and of time. Without a comparable metric its height is 0."""
    name = metrics[0] if metrics else None
    for row in models:
        if row.draw is None:
            continue
        colour, seconds = colours[row.model], row.draw
        value = row.metrics.get(name) if name else None
        height = value.value if value else 0.0
        axes.plot([seconds.low, seconds.high], [height, height], color=colour, lw=2.5, solid_capstyle="butt")
        if value:
            axes.plot([seconds.value] * 2, [value.low, value.high], color=colour, lw=2.5, solid_capstyle="butt")
        axes.plot([seconds.value], [height], "o", color=colour, ms=6, label=row.model)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("seconds to draw 1,000", size=SMALL, color=INK)
    better = next((row.metrics[name].better for row in models if name in row.metrics), "") if name else ""
    title = f"{name}, {better} is better" if name else "no metric is comparable between the models"
    axes.set_title(title, size=SMALL, color=INK, loc="left", weight="bold")
    if not name:
        axes.set_yticks([])
    axes.legend(frameon=False, fontsize=SMALL - 1)
    plain(axes)


def _seconds(axes: Axes, rows: Sequence[Growth], colours: Mapping[str, str], label: str) -> None:
    """Draw the seconds of drawing (solid) and of scoring (dashed), with their intervals."""
    for model, colour in colours.items():
        own = [row for row in rows if row.model == model]
        drawn = [(row.value, row.draw) for row in own if row.draw]
        scored = [(row.value, row.score) for row in own if row.score]
        for known, dashes in ((drawn, "-"), (scored, "--")):
            if known:
                axes.plot([x for x, _ in known], [v.value for _, v in known], color=colour, ls=dashes, lw=1.4, marker="o", ms=4)
                axes.vlines([x for x, _ in known], [v.low for _, v in known], [v.high for _, v in known], color=colour, lw=2.5)
    _log(axes, [row.value for row in rows], label, "seconds (solid: draw, dashed: score)")


def _log(axes: Axes, ticks: Sequence[int], label: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(set(ticks)), [f"{tick:,}" for tick in sorted(set(ticks))])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1e3 else f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel(label, size=SMALL, color=INK)
    axes.set_title(title, size=SMALL, color=INK, loc="left", weight="bold")
    plain(axes)


def seed_spread(path: Path, spread: SeedSpread, margins: Mapping[str, float]) -> None:
    """Draw each metric of each seed as a dot, and the automatic margin as a bar from their mean; one panel per metric."""
    figure = Figure(figsize=(7.0, 0.6 + 0.95 * len(spread.values)), dpi=DPI)
    for place, (name, values) in enumerate(spread.values.items(), start=1):
        axes = figure.add_subplot(len(spread.values), 1, place)
        mean = float(np.mean(values))
        axes.plot([mean, mean + margins[name]], [-0.4, -0.4], color=INK, lw=2.0, solid_capstyle="butt")
        axes.annotate("auto margin", (mean, -0.4), xytext=(0, -11), textcoords="offset points", size=SMALL - 2, color=INK)
        axes.plot(values, [0.0] * len(values), "o", color=MODEL, ms=6, alpha=0.75, mew=0)
        for seed, value in zip(spread.seeds, values, strict=True):
            above = (0, 6)
            axes.annotate(
                str(seed), (value, 0.0), xytext=above, textcoords="offset points", ha="center", size=SMALL - 2, color=MODEL
            )
        axes.set_ylim(-1.3, 1.0)
        axes.set_yticks([])
        axes.margins(x=0.08)
        axes.set_title(
            f"{name} of seeds {spread.seeds[0]} to {spread.seeds[-1]}", loc="left", size=SMALL, color=INK, weight="bold"
        )
        plain(axes)
    figure.tight_layout()
    save(figure, path)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, size=SMALL, color=INK, loc="left")
    axes.set_axis_off()


def _title(figure: Figure, drift: Drift) -> None:
    rows = f"{drift.added:,} examples added, {drift.removed:,} removed, {drift.kept:,} stayed"
    words = f"Training data since the champion: {len(drift.changed)} of {drift.tested} statistics changed\n{rows}"
    figure.suptitle(words, x=0.02, ha="left", size=BOLD - 2, color=INK, weight="bold")
    figure.tight_layout()
