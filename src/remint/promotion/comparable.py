"""Whether a metric of one report can be believed, and whether two may be held against each other."""

from __future__ import annotations

from typing import Literal

import numpy as np

from remint.evaluation.evidence import Evidence, values_digest
from remint.records import MetricValue

FEWEST = 8  # values behind a comparison; with fewer, a resample of one value repeated is too likely


def reference_of(metric: str) -> str:
    """The key in Evidence.values of a distance's jackknife pseudo-values over the examples that it is a distance to."""
    return f"{metric}:reference"


def unlike(challenger: Evidence, champion: Evidence, metric: str) -> str:
    """Why one metric of two reports may not be compared; "" where it may."""
    if challenger.report.dataset != champion.report.dataset:
        return "was measured on different dataset versions"
    ours, theirs = challenger.report.metrics[metric], champion.report.metrics[metric]
    for what, a, b in (("n", ours.n, theirs.n), ("unit", ours.unit, theirs.unit), ("direction", ours.better, theirs.better)):
        if a != b:
            return f"has {what} {a} for the challenger and {b} for the champion"
    if ours.fingerprint != theirs.fingerprint:
        keys = {k for k in {*ours.fingerprint, *theirs.fingerprint} if ours.fingerprint.get(k) != theirs.fingerprint.get(k)}
        return f"was measured differently: {', '.join(sorted(keys))}"
    for key in (metric, reference_of(metric)):
        a_count, b_count = (np.size(side.values.get(key, ())) for side in (challenger, champion))
        if a_count != b_count:
            return f"has {a_count} values for the challenger and {b_count} for the champion"
    a_count = np.size(challenger.values[metric])
    return f"has {a_count} values and needs {FEWEST}: raise evaluation.draws or the data" if a_count < FEWEST else ""


def gain(challenger: Evidence, champion: Evidence, key: str, better: Literal["lower", "higher"]) -> np.ndarray | None:
    """How much better each value of the challenger is; None where there are none."""
    if key not in challenger.values or key not in champion.values:
        return None
    lower_N: np.ndarray = np.subtract(champion.values[key], challenger.values[key], dtype=np.float64)
    return -lower_N if better == "higher" else lower_N


def measured(evidence: Evidence, metric: str, side: str) -> tuple[MetricValue | None, str]:
    """A metric that can be believed; or None and what is wrong with it."""
    value = evidence.report.metrics.get(metric)
    if value is None or metric not in evidence.values:
        return None, f"{metric} is missing for {side}: evaluate again"
    numbers = np.array([value.value, value.low, value.high])
    for key in (metric, reference_of(metric)):
        if key not in evidence.values:
            continue  # only distances to a reference have such values
        values_N = np.asarray(evidence.values[key])
        if values_N.ndim != 1 or values_N.size == 0 or values_N.dtype.kind not in "fiu":
            return None, f"{metric} of {side} has no list of numbers behind it"
        bad = int((~np.isfinite(values_N)).sum())
        if bad or not np.isfinite(numbers).all():
            return None, f"{metric} of {side} is not finite ({bad} of {values_N.size} values)"
    if value.low > value.high:
        return None, f"{metric} of {side} has an interval from {value.low:g} down to {value.high:g}"
    if evidence.report.values_sha256 not in ("", values_digest(evidence.values)):
        return None, f"the values of {side} are not those that its report was written with"
    return value, ""


def digest_of(evidence: Evidence) -> str:
    """Of the report with the values that were really used. "" where it holds a number that JSON has not (NaN)."""
    try:
        return evidence.report.model_copy(update={"values_sha256": values_digest(evidence.values)}).digest
    except ValueError:
        return ""
