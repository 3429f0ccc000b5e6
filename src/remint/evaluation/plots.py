"""Plots of samples, real data, training curves, metrics by class and metrics of the champion. Arrays and a path in, a PNG out.

Equal arrays give equal bytes: files contain no date, and the code does not use pyplot's global state.

Shapes: N examples, C channels, H height, W width, D columns of a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from remint.evaluation.drawing import (
    BOLD,
    DPI,
    INK,
    LINES,
    MODEL,
    OTHER,
    QUIET,
    REAL,
    SMALL,
    bin_edges,
    cycle,
    dot,
    interval,
    label_dates,
    original,
    plain,
    save,
    shares,
    show,
    tile,
)
from remint.records import Column, MetricValue

Array = np.ndarray[Any, Any]


def sample_grid(path: Path, x_NCHW: Array, levels: int, title: str = "", columns: int | None = None) -> None:
    """Draw ``x_NCHW`` (uint8, values 0 .. levels-1; C is 1 or 3; a fourth channel is dropped), square or in ``columns``."""
    tiled = tile(x_NCHW, levels, columns or math.ceil(math.sqrt(len(x_NCHW))))
    wide = 5.0
    high = wide * tiled.shape[0] / tiled.shape[1]
    head = 0.4 if title else 0.0
    figure = Figure(figsize=(wide, high + head), dpi=DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, high / (high + head)))
    show(axes, tiled)
    if title:
        figure.text(0.02, 1.0 - 0.5 * head / (high + head), title, va="center", size=BOLD, color=INK)
    save(figure, path)


def comparison(path: Path, real_NCHW: Array, samples: Mapping[str, Array], levels: int) -> None:
    """Draw real images and each model's samples side by side, equally many of each and in one scale.

    Args:
        real_NCHW: real images, uint8, values 0 .. levels-1.
        samples: x_NCHW of each model by name, in the order of the panels.
        levels: number of values of a pixel.
    """
    panels = {"real": real_NCHW, **samples}
    count = min(64, *(len(x_NCHW) for x_NCHW in panels.values()))
    columns = math.ceil(math.sqrt(count))
    figure = Figure(figsize=(3.2 * len(panels), 3.5), dpi=DPI)
    for place, (name, x_NCHW) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        show(axes, tile(x_NCHW[:count], levels, columns))
        axes.set_title(name, size=BOLD, color=REAL if place == 1 else MODEL, weight="bold", pad=6)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.9, wspace=0.05)
    save(figure, path)


def table_columns(
    path: Path,
    real_ND: Array,
    samples: Mapping[str, Array],
    columns: Sequence[Column],
    title: str = "",
    inks: Sequence[str] = LINES,
) -> None:
    """Draw a histogram of each of the first 12 columns, real values grey and each model's as a line.

    Args:
        real_ND: real rows, float32, as in records.DataSpec; missing values are left out.
        samples: rows of each model by name.
        inks: colours of the models, in their order.
    """
    shown = columns[:12]
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(2.4 * across, 0.8 + 1.7 * down), dpi=DPI)
    for place, column in enumerate(shown):
        axes = figure.add_subplot(down, across, place + 1)
        real_N, *others = [original(x_ND[:, place], column) for x_ND in (real_ND, *samples.values())]
        edges = np.arange(len(column.categories) + 1) - 0.5 if column.categories else bin_edges([real_N, *others])
        axes.stairs(shares(real_N, edges), edges, fill=True, color="#cbd2d9", label="real")
        for (name, other_N), colour in zip(zip(samples, others, strict=True), itertools.cycle(inks), strict=False):
            axes.stairs(shares(other_N, edges), edges, color=colour, lw=1.4, label=name)
        if column.categories:
            few = len(column.categories) <= 6
            axes.set_xticks(range(len(column.categories)), [name[:8] if few else "" for name in column.categories])
        axes.set_title(column.name, size=SMALL, color=INK, loc="left")
        axes.set_yticks([])
        plain(axes)
        label_dates(axes, column)
    left_out = f"  (the first {len(shown)} of {len(columns)} columns)" if len(columns) > len(shown) else ""
    figure.suptitle(title + left_out, x=0.02, ha="left", size=BOLD, color=INK, weight="bold")
    figure.axes[0].legend(frameon=False, fontsize=SMALL - 2)
    figure.tight_layout()
    save(figure, path)


def by_class(path: Path, metrics: Mapping[str, Mapping[str, MetricValue]], title: str = "") -> None:
    """Draw each metric over the held-out examples of each class, with its 95% interval; one panel per metric."""
    most = max(len(classes) for classes in metrics.values())
    figure = Figure(figsize=(3.4 * len(metrics), 1.1 + 0.28 * most), dpi=DPI)
    for place, (metric, classes) in enumerate(metrics.items(), start=1):
        axes = figure.add_subplot(1, len(metrics), place)
        upwards = list(reversed(list(classes.items())))
        for height, (_, measured) in enumerate(upwards):
            axes.plot([measured.low, measured.high], [height, height], color=MODEL, lw=2.5, solid_capstyle="butt")
            axes.plot([measured.value], [height], "o", color=MODEL, ms=5)
        axes.set_yticks(range(len(classes)), [name[:14] for name, _ in upwards])
        first = next(iter(classes.values()))
        unit = f", {first.unit}" if first.unit else ""
        axes.set_title(f"{metric}{unit}: {first.better} is better", loc="left", size=SMALL, color=INK, weight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        plain(axes)
    if title:
        figure.suptitle(title, x=0.02, ha="left", size=BOLD, color=INK, weight="bold")
    figure.tight_layout()
    save(figure, path)


def training_curve(path: Path, curve: Mapping[str, Sequence[float]], best_step: int, title: str = "") -> None:
    """Draw columns over ``curve["step"]``: losses and the validation score in one panel, all others in a second.

    A vertical line marks ``best_step``, whose averaged weights are served. A value that is not finite leaves a gap.
    """
    names = [name for name in curve if name != "step"]
    losses = [name for name in names if name.endswith("loss") or name == "validation"]
    groups = [group for group in (losses, [name for name in names if name not in losses]) if group]
    figure = Figure(figsize=(8.0, 0.7 + 2.6 * len(groups)), dpi=DPI)
    for place, group in enumerate(groups, start=1):
        axes = figure.add_subplot(len(groups), 1, place)
        for name, colour in zip(group, cycle(len(group)), strict=True):
            ink, width = (INK, 1.8) if name == "validation" else (colour, 1.3)
            axes.plot(curve["step"], curve[name], label=name.replace("_", " "), color=ink, lw=width, marker=dot(curve))
        axes.axvline(best_step, color=QUIET, lw=1.0, ls=(0, (4, 3)), label=f"served (step {best_step})")
        corner = (-0.01, 1.0)
        axes.legend(
            frameon=False, fontsize=SMALL, ncols=len(group) + 1, loc="lower left", bbox_to_anchor=corner, borderaxespad=0.2
        )
        axes.set_xlabel("step" if place == len(groups) else "", size=SMALL, color=INK)
        plain(axes)
    if title:
        figure.suptitle(title, x=0.02, ha="left", size=BOLD, color=INK, weight="bold")
    figure.tight_layout()
    save(figure, path)


def curves(path: Path, sides: Mapping[str, tuple[Mapping[str, Sequence[float]], int]]) -> None:
    """Draw each column of two training curves in its own panel, the first side blue and in front, the second dark.

    A column may lack values in some rows; a line joins the known values.

    Args:
        sides: by name, each side's curve (as in ``training_curve``) and the step whose weights are served.
    """
    names = list(dict.fromkeys(name for curve, _ in sides.values() for name in curve if name != "step"))
    across = 4 if len(names) in (4, 7, 8) else 3
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(11.0, 0.4 + 2.0 * down), dpi=DPI)
    inks = dict(zip(sides, (MODEL, INK), strict=False))
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(down, across, place)
        for side, (curve, best_step) in reversed(list(sides.items())):
            if name in curve:
                known = [(step, value) for step, value in zip(curve["step"], curve[name], strict=True) if math.isfinite(value)]
                axes.plot(*zip(*known, strict=True) if known else ([], []), color=inks[side], lw=1.2, marker=dot(curve))
                axes.axvline(best_step, color=inks[side], lw=0.9, ls=(0, (4, 3)))
        axes.set_title(name.replace("_", " "), size=SMALL, color=INK, loc="left", weight="bold")
        axes.set_xlabel("step" if place > len(names) - across else "", size=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        plain(axes)
    figure.tight_layout()
    save(figure, path)


def likelihoods(path: Path, measured: MetricValue, sides: Mapping[str, Array]) -> None:
    """Draw the histogram of a likelihood over the held-out examples; for two sides also the histogram of paired differences.

    Values beyond the 0.5% and 99.5% points are counted in the outermost bins. Triangles mark the means.

    Args:
        measured: the metric, for its name and unit.
        sides: value of each example (N,) by name; one side or two, the first drawn blue.
    """
    (first, value_N), *others = sides.items()
    figure = Figure(figsize=(11.0 if others else 7.0, 3.0), dpi=DPI)
    axes = figure.add_subplot(1, 1 + len(others), 1)
    edges = bin_edges([*sides.values()])
    axes.stairs(_held(value_N, edges), edges, fill=True, color="#bfd3fb")
    for (name, side_N), ink in zip(sides.items(), (MODEL, INK), strict=False):
        axes.stairs(_held(side_N, edges), edges, color=ink, lw=1.5, label=f"{name}, mean {side_N.mean():.3f}")
        axes.plot([side_N.mean()], [0.0], marker="^", ms=8, color=ink, clip_on=False, zorder=3)
    axes.set_xlabel(f"{measured.name}, {measured.unit}: {measured.better} is better", size=SMALL, color=INK)
    axes.set_title("held-out examples", size=SMALL, color=INK, loc="left", weight="bold")
    plain(axes)
    axes.legend(frameon=False, fontsize=SMALL - 1)
    for name, other_N in others:
        _pairs(figure.add_subplot(1, 2, 2), other_N - value_N, measured, (first, name))
    figure.tight_layout()
    save(figure, path)


def _pairs(axes: Axes, gain_N: Array, measured: MetricValue, names: tuple[str, str]) -> None:
    """Draw the histogram of the first side's gain on each example: right of 0 the first is better."""
    reach = max(float(np.quantile(np.abs(gain_N), 0.99)), 1e-9)
    edges = np.linspace(-reach, reach, 30 + 1)
    shares = _held(gain_N, edges)
    better, worse = edges[:-1] >= -1e-12 * reach, edges[1:] <= 1e-12 * reach
    axes.stairs(np.where(worse, shares, 0.0), edges, fill=True, color="#8a94a0")
    axes.stairs(np.where(better, shares, 0.0), edges, fill=True, color=MODEL)
    axes.axvline(0.0, color=INK, lw=1.0)
    axes.plot([gain_N.mean()], [0.0], marker="^", ms=8, color=OTHER, clip_on=False, zorder=3, label=f"mean {gain_N.mean():+.4f}")
    won = float((gain_N > 0).mean())
    axes.set_title(f"pairs: {names[0]} is better on {won:.0%} of them", size=SMALL, color=INK, loc="left", weight="bold")
    axes.set_xlabel(f"{names[1]} minus {names[0]}, {measured.unit}", size=SMALL, color=INK)
    plain(axes)
    axes.legend(frameon=False, fontsize=SMALL - 1, loc="upper left")


def _held(value_N: Array, edges: Array) -> Array:
    """Return the share of the values in each bin; values outside count in the outermost bins."""
    return shares(np.clip(value_N, edges[0], edges[-1]), edges)


def neighbours(path: Path, sample_NCHW: Array, near_NCHW: Array, distance_N: Array, levels: int) -> None:
    """Draw each sample above its nearest training image, with their distance in levels; one pair per distance."""
    across = min(8, len(distance_N))
    down = math.ceil(len(distance_N) / across)
    figure = Figure(figsize=(1.1 * across, 0.2 + 2.5 * down), dpi=DPI)
    for place, (sample_CHW, near_CHW, distance) in enumerate(zip(sample_NCHW, near_NCHW, distance_N, strict=False), start=1):
        axes = figure.add_subplot(down, across, place)
        show(axes, tile(np.stack([sample_CHW, near_CHW]), levels, columns=1))
        axes.set_title(f"{distance:.2f}", size=SMALL, color=INK, pad=3)
    figure.suptitle(
        "samples, each above its nearest training image; distance in levels", x=0.02, ha="left", size=SMALL, color=INK
    )
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.86, wspace=0.08, hspace=0.18)
    save(figure, path)


def metric_intervals(path: Path, challenger: Mapping[str, MetricValue], champion: Mapping[str, MetricValue]) -> None:
    """Draw each metric of the challenger with its 95% interval, above the champion's if it has one; one panel per metric."""
    figure = Figure(figsize=(7.0, 0.5 + 1.35 * len(challenger)), dpi=DPI)
    for place, (name, value) in enumerate(challenger.items(), start=1):
        axes = figure.add_subplot(len(challenger), 1, place)
        rows = [("challenger", value, MODEL), *([("champion", champion[name], INK)] if name in champion else [])]
        for height, (_, measured, colour) in enumerate(reversed(rows)):
            interval(axes, height, measured, colour)
        axes.set_yticks(range(len(rows)), [who for who, *_ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.2)
        axes.margins(x=0.12)
        unit = f", {value.unit}" if value.unit else ""
        axes.set_title(f"{name}{unit}: {value.better} is better, 95% intervals", loc="left", size=SMALL, color=INK, weight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        plain(axes)
    figure.tight_layout()
    save(figure, path)
