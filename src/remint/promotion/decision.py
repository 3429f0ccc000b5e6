"""Decision of the gate, with every rule and every number."""

from __future__ import annotations

from typing import ClassVar, Literal

from remint.promotion.trials import Trial
from remint.records import MetricValue, Record
from remint.settings.judging import PromotionSettings
from remint.settings.shadow import ServingSettings

Verdict = Literal["promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow"]


class RuleResult(Record):
    """One rule of the gate, with every number that it used."""

    rule: Literal["require", "improve", "never_worse", "leakage", "evidence", "clean", "person", "approval", "schema", "shadow"]
    passed: bool
    reason: str  # one sentence that a person can act on
    metric: str | None = None
    challenger: MetricValue | None = None
    champion: MetricValue | None = None
    difference: tuple[float, float, float] | None = None  # champion minus challenger, low, high: above 0 is better
    margin: float | None = None  # bound for the lower limit of the difference; None: not known, or no bound
    nights: tuple[float, float] | None = None  # evidence of all nights, and how much is enough (promotion/nights.py)
    added_later: ClassVar[frozenset[str]] = frozenset({"nights"})


class ShadowTerms(Record):
    """Settings by which a version that awaits shadow is judged again: those of the day of its first decision."""

    serving: ServingSettings
    promotion: PromotionSettings


class Decision(Record):
    """Decision of the gate on one challenger, with reasons."""

    model: str
    verdict: Verdict
    challenger: int  # version
    champion: int | None  # version that it was compared with
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...]
    evidence: dict[str, str]  # digests of the reports and of the rules
    terms: ShadowTerms | None = None  # if it awaits shadow
    trial: Trial | None = None  # if it was compared with a champion
    added_later: ClassVar[frozenset[str]] = frozenset({"terms", "trial"})
