"""Sections of the page: text, numbers and pictures for each part of the template.

Shapes: N examples, X the axes of one example, D columns of a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remint.evaluation.evidence import ON_CALIBRATION
from remint.promotion.decision import RuleResult
from remint.promotion.page import bars, pictures, words
from remint.promotion.page.story import Array, Side, Story
from remint.records import Column, DataSpec, MetricValue

ROWS = 8  # rows of a table that are shown with their neighbours
COLUMNS = 7  # columns of a wide table that are shown
UNUSUAL = 4  # unusual columns that are named for each failed row

View = dict[str, Any]


def sides(story: Story) -> list[tuple[str, Side]]:
    """Return the shown sides: the challenger, and the champion if it was measured on the same data."""
    return [("challenger", story.challenger), *([("champion", story.champion)] if story.champion else [])]


def verdict(story: Story) -> View:
    decision = story.decision
    title, meaning = words.VERDICTS[decision.verdict]
    old = f"{decision.model}/{decision.champion}" if decision.champion is not None else "nothing"
    trained = story.challenger.trained
    rules = sorted(decision.rules, key=lambda rule: list(words.RULES).index(rule.rule))
    ordered = [rule.reason for rule in rules if rule.reason in decision.reasons]
    ordered += [reason for reason in decision.reasons if reason not in ordered]  # of no rule: the try and its cost
    return {
        "kind": decision.verdict,
        "title": title,
        "meaning": meaning.format(new=f"{decision.model}/{decision.challenger}", old=old),
        "reasons": [*ordered, *(reason for reason in decision.reasons if reason not in ordered)],
        "rules": [_rule(story, rule) for rule in rules],
        "alarm": trained.ended if trained.went_wrong else "",
        "trained": trained,
    }


def _rule(story: Story, rule: RuleResult) -> View:
    asked = words.asked(rule, story.rules)
    champion = rule.champion
    if champion is None and story.champion is not None and rule.metric is not None:
        champion = story.champion.report.metrics.get(rule.metric)
    places = words.decimals(rule.challenger, champion)
    return {
        "name": words.RULES[rule.rule],
        "metric": rule.metric or "",
        "unit": rule.challenger.unit if rule.challenger else "",
        "asked": asked,
        "challenger": _value(rule.challenger, places),
        "champion": _value(champion, places),
        "difference": _difference(rule.difference),
        "passed": rule.passed,
        "reason": "" if asked and rule.reason in story.decision.reasons else rule.reason,
    }


def _value(value: MetricValue | None, places: int) -> View | None:
    return {"value": words.number(value.value, places), "interval": words.interval(value, places)} if value else None


def _difference(numbers: tuple[float, float, float] | None) -> View | None:
    if numbers is None:
        return None
    value, low, high = numbers
    places = words.places_of((high - low) / 2.0 or abs(value) or 1.0)
    limits = f"[{words.signed(low, places)}, {words.signed(high, places)}]"
    return {"value": words.signed(value, places), "interval": limits}


def metrics(story: Story) -> list[View]:
    """Return a row for each metric: both values, their intervals on one scale with reference lines, and the difference."""
    rows = []
    rules = {rule.metric: rule for rule in reversed(story.decision.rules) if rule.metric and rule.difference}
    for name, ours in story.challenger.report.metrics.items():
        theirs = story.champion.report.metrics.get(name) if story.champion else None
        places = words.decimals(ours, theirs)
        both = [("challenger", ours), *([("champion", theirs)] if theirs else [])]
        rule = rules.get(name)
        rows.append(
            {
                "name": name,
                "about": words.about(name),
                "better": f"{ours.better} is better",
                "unit": ours.unit,
                "n": ours.n,
                "challenger": _value(ours, places),
                "champion": _value(theirs, places),
                "chart": bars.intervals(both, _marks(story, name, ours)),
                "difference": _difference(rule.difference if rule else None),
                "unchosen": words.unchosen(name, {who: side.report for who, side in sides(story)}, places),
                "gain": bars.difference(rule.difference, rule.margin) if rule and rule.difference else None,
            }
        )
    return rows


def _marks(story: Story, name: str, value: MetricValue) -> list[tuple[str, float]]:
    """Return the reference lines of a metric: its floor, the value of a trivial model for a likelihood, and required bounds."""
    marks = []
    for other, context in story.challenger.report.context.items():
        if other == f"{name}_floor":
            marks.append(("real data", context.value))
        elif value.unit and context.unit == value.unit and not other.endswith(ON_CALIBRATION):
            marks.append((other, context.value))
    bound = story.rules.require.get(name)
    marks += [("required", limit) for limit in ((bound.min, bound.max) if bound else ()) if limit is not None]
    return marks


def samples(story: Story) -> View:
    """Return grids of real images and of each side's samples from the same latents; for a table, a picture of its columns."""
    spec = story.spec
    shown = [(who, side) for who, side in sides(story) if side.samples_NX is not None]
    if spec.is_table or not shown:
        return {"grids": [], "columns": pictures.png(story.pictures["columns"]) if "columns" in story.pictures else ""}
    grids = [("real", "held-out examples", story.real_NX)]
    grids += [(who, f"{side.version.ref}", side.samples_NX) for who, side in shown if side.samples_NX is not None]
    return {
        "grids": [{"who": who, "name": name, "src": pictures.sheet(x_NX, spec.levels, 8)} for who, name, x_NX in grids],
        "columns": "",
    }


def nearest(story: Story) -> list[View]:
    """Return for each side samples with their nearest training examples, and the same distance for real examples."""
    views = []
    for who, side in sides(story):
        if side.nearest is None or side.samples_NX is None:
            continue
        distance_N, real_M = side.nearest["distance_N"], side.nearest["real_M"]
        view: View = {
            "who": who,
            "ref": side.version.ref,
            "median": words.number(float(np.median(distance_N)), 2),
            "real": [words.number(float(value), 2) for value in np.quantile(real_M, [0.5, 0.05, 0.95])],
            "closer": int((distance_N < np.quantile(real_M, 0.05)).sum()),
            "copies": int((distance_N == 0.0).sum()),
            "count": len(distance_N),
            "unit": "standard deviations" if story.spec.is_table else f"in levels of 0 to {story.spec.levels - 1}",
        }
        pairs = list(zip(side.samples_NX, side.nearest["near_NX"], distance_N, strict=False))
        if story.spec.is_table:
            chosen = list(range(min(COLUMNS, len(story.spec.columns))))
            view["columns"] = [story.spec.columns[place].name for place in chosen]
            view["left_out"] = len(story.spec.columns) - len(chosen)
            view["rows"] = [
                {
                    "sample": _cells(a_D, story.spec, chosen),
                    "near": _cells(b_D, story.spec, chosen),
                    "distance": f"{distance:.2f}",
                }
                for a_D, b_D, distance in pairs[:ROWS]
            ]
        else:
            view["pairs"] = [
                {
                    "sample": pictures.single(a_CHW, story.spec.levels),
                    "near": pictures.single(b_CHW, story.spec.levels),
                    "distance": f"{distance:.2f}",
                }
                for a_CHW, b_CHW, distance in pairs
            ]
        views.append(view)
    return views


def failures(story: Story) -> View | None:
    """Return the held-out examples on which the challenger is worst, with the champion's value of the same example."""
    failed = story.challenger.failures
    if failed is None:
        return None
    metric, spec = str(failed["metric"]), story.spec
    rivals = _rival_values(story.champion, metric) if story.champion else None
    names = spec.class_names or tuple(str(y) for y in range(spec.classes))
    views = []
    row_N = failed.get("row_N", failed["place_N"])  # a report from before has the values of all held-out examples
    for order, (place, row) in enumerate(zip(failed["place_N"], row_N, strict=True)):
        label = int(failed["y_N"][order]) if "y_N" in failed else None
        rival = rivals[row] if rivals is not None and row < len(rivals) else None
        view: View = {
            "place": int(place),
            "label": "" if label is None else names[label] if label < len(names) else str(label),
            "challenger": words.number(float(failed["value_N"][order]), 2),
            "champion": "" if rival is None else words.number(float(rival), 2),
            "worse": rival is not None and rival < failed["value_N"][order],
        }
        if spec.is_table:
            view["unusual"] = _unusual(failed["x_NX"][order], spec)
        else:
            view["src"] = pictures.single(failed["x_NX"][order], spec.levels)
        views.append(view)
    unit = (
        spec.unit if metric != "uncovered" else "standard deviations" if spec.is_table else f"in levels of 0 to {spec.levels - 1}"
    )
    labelled = "y_N" in failed and bool(names)
    return {"metric": metric, "unit": unit, "examples": views, "rival": rivals is not None, "labelled": labelled}


def _rival_values(side: Side, metric: str) -> Array | None:
    """Return the champion's value of every judged held-out example; None if its failures were chosen by another metric."""
    if metric in side.values:
        return side.values[metric]
    same = side.failures is not None and str(side.failures["metric"]) == metric and "all_M" in side.failures
    return side.failures["all_M"] if same and side.failures is not None else None


def _cells(row_D: Array, spec: DataSpec, chosen: Sequence[int]) -> list[str]:
    return [_original(float(row_D[place]), spec.columns[place]) for place in chosen]


def _original(value: float, column: Column) -> str:
    """Return a value of a row in the column's own units."""
    from remint.data import rows  # late import: images do not need pyarrow

    shown = rows.text(column, value, 4) or "missing"
    return shown.replace("-", "−") if column.numeric and not column.type.startswith(rows.TEMPORAL) else shown


def _unusual(row_D: Array, spec: DataSpec) -> list[str]:
    """Return the numbers of a row that are farthest from their mean, with the distance in standard deviations."""
    far = [(abs(float(row_D[place])), place) for place, column in enumerate(spec.columns) if column.numeric]
    far = sorted((pair for pair in far if math.isfinite(pair[0])), key=lambda pair: (-pair[0], pair[1]))[:UNUSUAL]
    named = [(spec.columns[place], float(row_D[place])) for _, place in far]
    return [f"{column.name} {_original(value, column)} ({words.signed(value, 1)})" for column, value in named]


def by_class(story: Story) -> list[View]:
    """Return a table for each metric with values by class: both sides on one scale."""
    views = []
    for name, classes in story.challenger.report.by_class.items():
        others: Mapping[str, MetricValue] = story.champion.report.by_class.get(name, {}) if story.champion else {}
        first = next(iter(classes.values()))
        views.append({"metric": name, "unit": first.unit, "better": f"{first.better} is better", **_table(classes, others)})
    return views


def representation(story: Story) -> View | None:
    """Return the accuracy of linear probes (evaluation/representation.py), or None if there are none."""
    ours, theirs = (
        {label: side.report.context[name] for name, label in words.PROBES.items() if name in side.report.context} if side else {}
        for side in (story.challenger, story.champion)
    )
    if not ours:
        return None
    first = next(iter(ours.values()))
    return {
        "numbers": first.fingerprint["numbers"],
        "trained_on": first.fingerprint["trained_on"],
        "n": first.n,
        **_table(ours, theirs),
    }


def _table(ours: Mapping[str, MetricValue], theirs: Mapping[str, MetricValue]) -> View:
    """Return a row for each value, and the axis of their chart: both sides on one scale."""
    ends = [end for value in (*ours.values(), *theirs.values()) for end in (value.low, value.high)]
    scale = bars.Scale.over(ends, 400)
    places = words.decimals(*ours.values(), *theirs.values())
    rows = [
        {
            "name": label,
            "challenger": _value(value, places),
            "champion": _value(theirs.get(label), places),
            "chart": bars.stacked([("challenger", value), *([("champion", theirs[label])] if label in theirs else [])], scale),
        }
        for label, value in ours.items()
    ]
    return {"rows": rows, "axis": bars.axis(scale)}


def data(story: Story) -> View:
    """Return the leakage between the splits, and the drift since the champion was trained."""
    drift = story.drift
    distances = [value for value in (drift.distance, drift.floor) if value is not None] if drift else []
    places = words.decimals(*distances)
    return {
        "leakage": story.challenger.report.leakage,
        "theirs": story.champion.report.leakage if story.champion and drift else None,
        "drift": drift,
        "same": story.champion_version is not None and story.champion_version.dataset == story.challenger.report.dataset,
        "champion_version": story.champion_version,
        "counts": [(name, drift.before.get(name, 0), drift.after.get(name, 0)) for name in drift.after] if drift else [],
        "distance": _value(drift.distance, places) if drift else None,
        "floor": _value(drift.floor, places) if drift else None,
    }
