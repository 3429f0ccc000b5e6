"""Intervals as inline SVG: several on one scale, or a difference around zero. Shapes differ as well as colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from remint.promotion.page import words
from remint.records import MetricValue

ROW, HEAD, FOOT = 18, 15, 20  # pixels of an interval, of a line above them, of the axis
FAR = 12.0  # spans of the intervals; a mark farther away becomes an arrow at the edge, so that the intervals stay visible


@dataclass(frozen=True)
class Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    width: int
    pad: int = 10

    @classmethod
    def over(cls, values: Sequence[float], width: int, pad: int = 10) -> Scale:
        low, high = min(values), max(values)
        around = 0.06 * (high - low) or 0.05 * abs(low) or 1.0
        return cls(low - around, high + around, width, pad)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.pad + min(1.0, max(0.0, share)) * (self.width - 2 * self.pad), 1)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round numbers, at most ``count`` + 1."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def axis(self, top: float, height: float) -> Markup:
        """Return a faint line and a number at each tick."""
        ticks = self.ticks()
        step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        lines = [
            Markup(
                '<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="tick" x="{0}" y="{3}">{4}</text>'
            ).format(self(tick), top, top + height, top + height + 13, words.number(tick, places))
            for tick in ticks
        ]
        return Markup("").join(lines)


def intervals(sides: Sequence[tuple[str, MetricValue]], marks: Sequence[tuple[str, float]] = (), width: int = 340) -> Markup:
    """Return 95% intervals, one below the other.

    Args:
        sides: "challenger" or "champion" (the CSS class, too) and the measurement.
        marks: names and values of reference lines; each is a dashed line with its name above.
    """
    ends = [end for _, value in sides for end in (value.low, value.high)]
    span = max(ends) - min(ends) or 1.0
    near = [mark for mark in marks if min(ends) - FAR * span <= mark[1] <= max(ends) + FAR * span]
    scale = Scale.over([*ends, *(at for _, at in near)], width)
    top, height = HEAD * len(marks), ROW * len(sides)
    parts = [scale.axis(top, height)]
    for line, mark in enumerate(marks):
        parts.append(_mark(scale, *mark, HEAD * line + 11, top + height, inside=mark in near))
    for row, (who, value) in enumerate(sides):
        parts.append(_interval(scale, who, (value.value, value.low, value.high), top + ROW * (row + 0.5)))
    label = "; ".join(f"{who} {value.text()}" for who, value in sides)
    return _svg(width, top + height + FOOT, parts, label)


def difference(numbers: tuple[float, float, float], margin: float | None, width: int = 250) -> Markup:
    """Return the improvement of the challenger with its limits: right of 0 is better; the dashed line is the margin."""
    value, low, high = numbers
    reach = max(abs(low), abs(high), 1.15 * abs(margin or 0.0)) or 1.0
    scale = Scale.over([-reach, reach], width)
    parts = [scale.axis(HEAD, ROW)]
    parts.append(Markup('<text class="tick start" x="{}" y="11">← worse</text>').format(scale.pad))
    parts.append(Markup('<text class="tick end" x="{}" y="11">better →</text>').format(width - scale.pad))
    parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(scale(0.0), HEAD - 2, HEAD + ROW))
    if margin:
        parts.append(_mark(scale, "margin", margin, 11, HEAD + ROW, inside=True))
    parts.append(_interval(scale, "difference", (value, low, high), HEAD + ROW / 2))
    return _svg(width, HEAD + ROW + FOOT, parts, f"difference {value:+.4g}, from {low:+.4g} to {high:+.4g}")


def stacked(sides: Sequence[tuple[str, MetricValue]], scale: Scale) -> Markup:
    """Return intervals on a scale shared with other rows, close together and without an axis."""
    apart = 9
    parts = [
        _interval(scale, who, (value.value, value.low, value.high), 8 + apart * row, slim=True)
        for row, (who, value) in enumerate(sides)
    ]
    return _svg(scale.width, 16 + apart * (len(sides) - 1), parts, "; ".join(f"{who} {value.text()}" for who, value in sides))


def axis(scale: Scale) -> Markup:
    """Return the axis of a scale alone."""
    return _svg(scale.width, FOOT, [scale.axis(0, 4)], "scale")


def _interval(scale: Scale, who: str, numbers: tuple[float, float, float], y: float, *, slim: bool = False) -> Markup:
    """Return a bar from low to high with end strokes, and a disc at the value (a square for the champion)."""
    value, low, high = (scale(number) for number in numbers)
    size = 3.5 if slim else 5.0
    bar = Markup(
        '<g class="{who}"><line class="bar" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        '<path class="ends" d="M{low} {top}V{bottom}M{high} {top}V{bottom}"/>{dot}</g>'
    )
    if who == "champion":
        dot = Markup('<rect x="{0}" y="{1}" width="{2}" height="{2}"/>').format(value - 0.9 * size, y - 0.9 * size, 1.8 * size)
    else:
        dot = Markup('<circle cx="{}" cy="{}" r="{}"/>').format(value, y, size)
    return bar.format(who=who, low=low, high=high, y=y, top=y - size, bottom=y + size, dot=dot)


def _mark(scale: Scale, name: str, value: float, y: float, bottom: float, *, inside: bool) -> Markup:
    """Return a dashed line with its name; for a value beyond the scale, an arrow at the edge."""
    right = value > (scale.low + scale.high) / 2.0
    side, dx = ("end", -4) if right else ("start", 4)
    if not inside:
        x = scale.width - scale.pad if right else scale.pad
        text = f"{name} {value:.4g} →" if right else f"← {name} {value:.4g}"
        return Markup('<text class="tick {}" x="{}" y="{}">{}</text>').format(side, x, y, text)
    return Markup(
        '<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="tick {3}" x="{4}" y="{5}">{6} {7:.4g}</text>'
    ).format(scale(value), y - 8, bottom, side, scale(value) + dx, y, name, value)


def _svg(width: int, height: float, parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg class="chart" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">')
    return head.format(width, round(height), escape(label)) + Markup("").join(parts) + Markup("</svg>")
