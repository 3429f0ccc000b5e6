"""A decision of the gate, with every rule and every number behind it."""

from __future__ import annotations

from typing import Literal

from remint.records import MetricValue, Record

Verdict = Literal["promoted", "kept", "refused", "awaiting_approval"]


class RuleResult(Record):
    """One rule of the gate, with every number that it used."""

    rule: Literal["require", "improve", "never_worse", "leakage", "evidence", "clean", "person", "approval"]
    passed: bool
    reason: str  # one sentence a person can act on
    metric: str | None = None
    challenger: MetricValue | None = None
    champion: MetricValue | None = None
    difference: tuple[float, float, float] | None = None  # champion minus challenger, low, high: above 0 is better
    margin: float | None = None  # what the difference is held against; None: not known, or there is none


class Decision(Record):
    """What the gate said of one challenger, and why."""

    model: str
    verdict: Verdict
    challenger: int  # version
    champion: int | None  # version that it was held against
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...]
    evidence: dict[str, str]  # digests of the reports and of the rules
