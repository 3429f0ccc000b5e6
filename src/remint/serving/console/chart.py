"""A metric over the nights as inline SVG: a line, the band of its 95% intervals, promotions and refusals.

Each verdict has a shape of its own besides its colour. A line joins two values only if they were measured in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from remint.records import MetricValue
from remint.serving.console.source import Night

WIDTH, HEIGHT = 380, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22  # pixels around the plot
LEAST_STEP = 34  # pixels between two numbers of the axis
FAR = 4.0  # times the spread of the values: a diverged training must not flatten all other nights

# Action -> SVG path of its mark, around (0, 0). Other actions have a dot.
MARKS = {
    "promoted": "M0-6 5.5 4H-5.5Z",
    "rolled_back": "M0 6 5.5-4H-5.5Z",
    "refused": "M-4-4 4 4M4-4-4 4",
    "rejected": "M-4-4 4 4M4-4-4 4",
    "awaiting_approval": "M-4-4H4V4H-4Z",
    "awaiting_shadow": "M0-5.5 5.5 0 0 5.5-5.5 0Z",
}
DOT = "M-3.5 0A3.5 3.5 0 1 0 3.5 0 3.5 3.5 0 1 0-3.5 0Z"


def draw(name: str, metric: str, nights: Sequence[Night]) -> Markup:
    """Return the chart of one metric. Each mark links to its version. Empty if the metric was never measured."""
    known = [(place, night, night.values[metric]) for place, night in enumerate(nights) if metric in night.values]
    known = [each for each in known if math.isfinite(each[2].value)]
    if not known:
        return Markup("")
    low, high = _range([value for _, _, value in known])

    def x(place: int) -> float:
        share = place / (len(nights) - 1) if len(nights) > 1 else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(TOP + (1.0 - share) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [*_axis(low, high, y), *_dates(nights)]
    for run in _runs(known):
        upper = [f"{x(place)} {y(value.high)}" for place, _, value in run]
        lower = [f"{x(place)} {y(value.low)}" for place, _, value in reversed(run)]
        parts.append(Markup('<path class="band" d="M{}Z"/>').format(" ".join(upper + lower)))
        line = " ".join(f"{x(place)} {y(value.value)}" for place, _, value in run)
        parts.append(Markup('<path class="line" d="M{}"/>').format(line))
    for place, night, value in known:
        text = f"{name}/{night.version} {said(night.action)} {night.at[:10]}: {value.text()}"
        parts.append(
            Markup('<a href="/models/{}/{}" aria-label="{}"><path class="mark {}" transform="translate({} {})" d="{}"/>').format(
                name, night.version, text, night.action, x(place), y(value.value), MARKS.get(night.action, DOT)
            )
            + Markup("<title>{}</title></a>").format(text)
        )
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{} of {} over {} versions">')
    return head.format(WIDTH, HEIGHT, metric, name, len(nights)) + Markup("").join(parts) + Markup("</svg>")


def said(action: str) -> str:
    """Return an action in words."""
    return action.replace("_", " ")


def _runs(known: Sequence[tuple[int, Night, MetricValue]]) -> list[list[tuple[int, Night, MetricValue]]]:
    """Return the parts within which the values are comparable."""
    runs = [[known[0]]]
    for before, each in pairwise(known):
        if each[2].fingerprint == before[2].fingerprint and each[2].unit == before[2].unit:
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def _range(values: Sequence[MetricValue]) -> tuple[float, float]:
    """Return the limits of the axis: all intervals, but for values far from most others, which are drawn at its edge."""
    low, high = min(value.low for value in values), max(value.high for value in values)
    first, third = np.quantile([value.value for value in values], (0.25, 0.75))
    reach = FAR * max(third - first, float(np.median([value.high - value.low for value in values])))
    low, high = max(low, first - reach), min(high, third + reach)
    around = 0.06 * (high - low) or 0.05 * abs(low) or 1.0
    return float(low - around), float(high + around)


def _axis(low: float, high: float, y: Callable[[float], float]) -> list[Markup]:
    """Return a faint line and a number at round values."""
    raw = (high - low) * LEAST_STEP / (HEIGHT - TOP - BOTTOM)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * (1 - 1e-9))
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    form = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}">{}</text>')
    return [
        form.format(LEFT, WIDTH - RIGHT, y(tick), y(tick), LEFT - 6, y(tick) + 4, f"{tick:.{places}f}".replace("-", "−"))
        for tick in ticks
    ]


def _dates(nights: Sequence[Night]) -> list[Markup]:
    form = Markup('<text class="date {}" x="{}" y="{}">{}</text>')
    first = form.format("first", LEFT, HEIGHT - 6, nights[0].at[:10])
    if len(nights) == 1:
        return [first]
    return [first, form.format("last", WIDTH - RIGHT, HEIGHT - 6, nights[-1].at[:10])]
