"""Checks before a comparison: the metric of one report is valid, the metrics of two reports are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from remint.evaluation.evidence import Evidence, values_digest
from remint.records import MetricValue

Array = np.ndarray[Any, Any]

MIN_PART = 0.5  # share of the held-out examples on which a comparison may promote
MIN_VALUES = 8  # values that a comparison needs; with fewer, a resample of one repeated value is too likely

# Keys of a fingerprint (evaluation/context.py) in words. Another key, such as a plug-in's, is named as it is.
METHOD = {
    "dataset": "version of the data",
    "split": "split",
    "seed": "evaluation.seed",
    "n": "number of examples or samples",
    "draws": "evaluation.draws",
    "interval": "kind of interval",
    "extractor": "feature extractor",
    "resize": "resizing of images for the feature extractor",
    "sizes": "sizes of the samples that the distance is extrapolated from",
    "kernel": "kernel",
    "estimate": "estimator",
    "neighbours": "number of nearest neighbours",
    "space": "space in which distances are measured",
    "dequantisation": "noise that is added to discrete values",
    "dequantisation_draws": "draws of the noise that is added to discrete values",
    "importance_samples": "evaluation.importance_samples",
    "noise_share": "largest part that sampling noise may add to the variance",
    "most_samples": "largest number of noise samples of an example",
    "of_class": "class",
    "anomalies": "number of anomalies",
    "file": "file of anomalies",
}


@dataclass(frozen=True)
class Part:
    """Held-out examples that a champion of another schema can describe, and the challenger's evidence on them."""

    challenger: Evidence
    described: int
    of: int

    def text(self) -> str:
        return f"{self.described:,} of {self.of:,} held-out examples"


def reference_of(metric: str) -> str:
    """Return the key in Evidence.values of a distance's jackknife pseudo-values over the reference examples."""
    return f"{metric}:reference"


def incomparable_reason(challenger: Evidence, champion: Evidence, metric: str) -> str:
    """Return why one metric of two reports may not be compared; "" if it may."""
    if challenger.report.dataset != champion.report.dataset:
        return "was measured on different dataset versions"
    ours, theirs = challenger.report.metrics[metric], champion.report.metrics[metric]
    pairs = ((METHOD["n"], ours.n, theirs.n), ("unit", ours.unit, theirs.unit), ("better direction", ours.better, theirs.better))
    for what, a, b in pairs:
        if a != b:
            return f"differs in its {what}: {a} for the challenger, {b} for the champion"
    if ours.fingerprint != theirs.fingerprint:
        return f"was measured differently: {differences([ours.fingerprint, theirs.fingerprint])}"
    for key in (metric, reference_of(metric)):
        a_count, b_count = (np.size(side.values.get(key, ())) for side in (challenger, champion))
        if a_count != b_count:
            return f"has {a_count} values for the challenger and {b_count} for the champion"
    a_count = np.size(challenger.values[metric])
    return f"has {a_count} values and needs {MIN_VALUES}: raise evaluation.draws or add data" if a_count < MIN_VALUES else ""


def differences(fingerprints: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how the fingerprints of one metric differ, with the values where these are numbers."""
    clauses = []
    for key in sorted({key for each in fingerprints for key in each}):
        values = [each.get(key) for each in fingerprints]
        if all(value == values[0] for value in values):
            continue
        if key == "given":  # the likelihood of a conditional model
            clauses.append(
                "one model is conditional, the other is not" if len(values) == 2 else "only some models are conditional"
            )
        elif all(isinstance(value, int | float) for value in values):
            clauses.append(f"{METHOD.get(key, key)} ({', '.join(map(str, dict.fromkeys(values)))})")
        else:
            clauses.append(METHOD.get(key, key))
    return "; ".join(clauses)


def gains(challenger: Evidence, champion: Evidence, metric: str) -> tuple[Array, Array | None]:
    """Return by how much each value of the challenger is better, and each pseudo-value over the reference, if there are any.

    Both sides must have the metric (``measured``, ``incomparable_reason``).
    """
    sign = -1.0 if challenger.report.metrics[metric].better == "higher" else 1.0
    keys = [key for key in (metric, reference_of(metric)) if key in challenger.values and key in champion.values]
    better = {key: sign * np.subtract(champion.values[key], challenger.values[key], dtype=np.float64) for key in keys}
    return better[metric], better.get(reference_of(metric))


def measured(evidence: Evidence, metric: str, side: str) -> tuple[MetricValue | None, str]:
    """Return the metric if it is valid; else None and the problem."""
    value = evidence.report.metrics.get(metric)
    if value is None or metric not in evidence.values:
        return None, f"{metric} is missing for {side}: run the pipeline again"
    numbers = np.array([value.value, value.low, value.high])
    for key in (metric, reference_of(metric)):
        if key not in evidence.values:
            continue  # only distances to a reference have such values
        values_N = np.asarray(evidence.values[key])
        if values_N.ndim != 1 or values_N.size == 0 or values_N.dtype.kind not in "fiu":
            return None, f"{metric} of {side} has no array of numbers in values.npz"
        bad = int((~np.isfinite(values_N)).sum())
        if bad or not np.isfinite(numbers).all():
            return None, f"{metric} of {side} is not finite ({bad} of {values_N.size} values)"
    if value.low > value.high:
        return None, f"{metric} of {side} has an interval whose lower limit {value.low:g} is above its upper limit {value.high:g}"
    if evidence.report.values_sha256 not in ("", values_digest(evidence.values)):
        return None, f"the values of {side} do not match the digest in its report"
    return value, ""


def digest_of(evidence: Evidence) -> str:
    """Return the digest of the report with its actual values; "" if it holds a number that JSON lacks (NaN)."""
    try:
        return evidence.report.model_copy(update={"values_sha256": values_digest(evidence.values)}).digest
    except ValueError:
        return ""
