"""Comparison of a version with its rebuild. Pure: records in, differences out.

rule        applies if                                         requires
identity    the fingerprint of machine and build is the same   every digest and every number the same, bit for bit
tolerance   the fingerprints differ                            the same data and settings; each metric within the version's
                                                               recorded tolerance; weights, features and report may differ
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remint.records import MetricValue, Record

Rule = Literal["identity", "tolerance"]

# The digests, in the order in which they are made; True: another machine may make a different one.
DIGESTS = {"dataset": False, "features": True, "weights_sha256": True, "manifest_sha256": True, "report_sha256": True}


class Facts(Record):
    """Facts of a version, as registered or as built again."""

    weights_sha256: str
    dataset: str  # digest of the DatasetVersion
    features: str  # dvc's digest of the folder that distances are measured in
    report_sha256: str  # of the EvaluationReport, with the values behind each metric
    manifest_sha256: str  # of the trained model's folder, with its record and curve
    settings: dict[str, Any]  # Recipe.resolved()
    metrics: dict[str, MetricValue]
    fingerprint: dict[str, Any]


class Difference(Record):
    """One difference between a version and its rebuild."""

    thing: str
    recorded: Any
    rebuilt: Any
    allowed: bool  # by the applied rule
    why: str  # a few words: the criterion


@dataclass(frozen=True)
class Comparison:
    rule: Rule
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        return not self.differences

    @property
    def reproduced(self) -> bool:
        """True if all differences are allowed."""
        return all(difference.allowed for difference in self.differences)


def compare(recorded: Facts, rebuilt: Facts, tolerance: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Compare the two. ``tolerance``: from ``tolerances``; a metric without one must be the same."""
    rule: Rule = "identity" if recorded.fingerprint == rebuilt.fingerprint else "tolerance"
    found = _settings(recorded.settings, rebuilt.settings)
    for thing, may in DIGESTS.items():
        before, after = getattr(recorded, thing), getattr(rebuilt, thing)
        if before != after:
            allowed = may and rule == "tolerance"
            found.append(Difference(thing=thing, recorded=before, rebuilt=after, allowed=allowed, why=_why(rule, may)))
    for name in dict.fromkeys((*recorded.metrics, *rebuilt.metrics)):
        ours, theirs = recorded.metrics.get(name), rebuilt.metrics.get(name)
        if ours != theirs:
            found.append(_metric(name, ours, theirs, rule, tolerance.get(name)))
    return Comparison(rule, tuple(found))


def _why(rule: Rule, may: bool) -> str:
    if rule == "identity":
        return "same machine and build: must be the same"
    return "another machine or build: may differ" if may else "must be the same on any machine"


def _settings(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[Difference]:
    before, after = _flat(recorded), _flat(rebuilt)
    return [
        Difference(
            thing=f"settings {key}", recorded=before.get(key), rebuilt=after.get(key), allowed=False, why=_why("tolerance", False)
        )
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def _flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _metric(
    name: str, recorded: MetricValue | None, rebuilt: MetricValue | None, rule: Rule, tolerance: Mapping[str, Any] | None
) -> Difference:
    """Describe the difference of one metric: in its value, its interval or its method, or on one side only."""
    both = {"recorded": recorded and recorded.to_json(), "rebuilt": rebuilt and rebuilt.to_json()}
    thing = f"metric {name}"
    if recorded is None or rebuilt is None:
        return Difference(thing=thing, **both, allowed=False, why="measured on one side only")
    if rule == "identity" or tolerance is None:
        why = _why("identity", False) if rule == "identity" else "no tolerance was recorded for it"
        return Difference(thing=thing, **both, allowed=False, why=why)
    apart, within = abs(recorded.value - rebuilt.value), float(tolerance["within"])
    allowed = apart <= within
    why = f"{apart:.4g} apart, {'within' if allowed else 'more than'} {within:.4g} ({tolerance['from']})"
    return Difference(thing=thing, **both, allowed=allowed, why=why)
