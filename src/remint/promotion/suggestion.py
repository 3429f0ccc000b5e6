"""Suggested bounds of ``promotion.require`` while a pipeline has no champion, from what its version reached.

    likelihoods       halfway from the far limit of the interval to the baseline of independent dimensions
    distances         as far above that limit as the limit is above the floor, the distance between real examples
    shares up to 1    twice the shortfall of that limit from 1

So a version that is as good as this one meets the bound, and one that learnt nothing does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from remint.records import EvaluationReport, MetricValue

LIKELIHOODS = ("nll", "elbo", "iwae")
SHARES = ("precision", "recall", "coverage", "novelty", "class_agreement")


def suggest(report: EvaluationReport, metrics: Collection[str]) -> str:
    """Return a sentence with the values reached, their references and a bound for each; "" if none follows for any."""
    found = {metric: _bound(report, metric) for metric in sorted(metrics) if metric in report.metrics}
    known = {metric: each for metric, each in found.items() if each is not None}
    if not known:
        return ""
    seen = "; ".join(_seen(report.metrics[metric], metric, reference) for metric, (_, reference) in known.items())
    bounds = ", ".join(f"{metric}: {{{bound}}}" for metric, (bound, _) in known.items())
    return f"{seen}. A bound that follows from them: promotion.require: {{{bounds}}}"


def _seen(value: MetricValue, metric: str, reference: tuple[str, MetricValue] | None) -> str:
    beside = "" if reference is None else f", {reference[0]} {reference[1].value:.3f}"
    return f"{metric} reached {value.text()}{beside}"


def _bound(report: EvaluationReport, metric: str) -> tuple[str, tuple[str, MetricValue] | None] | None:
    """Return a bound, as in params.yaml, and the reference that it follows from with its name; None if no bound follows."""
    value = report.metrics[metric]
    if not all(map(math.isfinite, (value.low, value.high))):
        return None
    name = "factorised" if metric in LIKELIHOODS else f"{metric}_floor"
    if name in report.context:
        reference = report.context[name]
        if metric not in LIKELIHOODS:
            bound = _round(value.high + max(value.high - reference.value, 0.0), math.ceil)
        elif value.high < reference.value:
            bound = _between(value.high, reference.value)
        else:
            return None  # no better than independent dimensions
        return f"max: {_text(bound)}", (name, reference)
    if metric.startswith(SHARES) and value.better == "higher" and value.low > 0.5:
        return f"min: {_text(_round(2 * value.low - 1, math.floor))}", None
    return None


def _text(bound: float) -> str:
    """Return a number as YAML reads one: 5.0e-05, since 5e-05 is text."""
    digits, exponent, power = f"{bound:.16g}".partition("e")
    return digits + ("" if "." in digits or not exponent else ".0") + exponent + power


def _between(low: float, high: float) -> float:
    """Return the number halfway between two, with three digits, or with as many as keep it between them."""
    half = (low + high) / 2
    for digits in range(3, 17):
        bound = _round(half, math.floor, digits)
        if low < bound < high:
            return bound
    return half


def _round(value: float, integer: Callable[[float], int], digits: int = 3) -> float:
    """Return the value with so many digits. ``integer``: math.floor or math.ceil."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1) if value else 1.0
    return float(f"{integer(round(value / unit, 6)) * unit:.{digits + 3}g}")
