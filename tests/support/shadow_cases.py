"""Versions that await shadow, and answers as servers count them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from remint.promotion.decision import Decision, RuleResult, ShadowTerms
from remint.promotion.kept_decisions import DECISION
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.runtime.home import Home
from remint.settings.judging import PromotionSettings
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.shadow_counts import Pair, ShadowCounts
from remint.stores.open import open_ledger
from tests.support.promotion_cases import MODEL

SERVING: dict[str, Any] = {"shadow": 1.0, "answers": 100, "deadline": "1h"}


def waiting(version: int = 2, champion: int = 1, serving: Mapping[str, Any] = SERVING, **promotion: Any) -> Decision:
    """Return a decision by which a version awaits shadow."""
    rules = PromotionSettings.model_validate({"require": {}, "improve": {"metric": "nll"}, **promotion})
    better = RuleResult(rule="improve", passed=True, reason="nll is better", metric="nll")
    waits = RuleResult(rule="shadow", passed=False, reason="it first answers copies of requests")
    return Decision(
        model=MODEL,
        verdict="awaiting_shadow",
        challenger=version,
        champion=champion,
        rules=(better, waits),
        reasons=(better.reason, waits.reason),
        evidence={"challenger": "c" * 64},
        terms=ShadowTerms(serving=ServingSettings.model_validate(serving), promotion=rules),
    )


def record_waiting(home: Home, decision: Decision, at: datetime | None = None) -> LedgerRow:
    """Record such a decision as the gate does: the row, the decision beside the version, and MLflow."""
    folder = home.report(MODEL, decision.challenger)
    folder.mkdir(parents=True, exist_ok=True)
    decision.write(folder / DECISION)
    row = open_ledger(home).append(
        MODEL,
        "awaiting_shadow",
        decision.challenger,
        champion_after=decision.champion,
        who="gate",
        why="\n".join(decision.reasons),
        evidence=f"e{decision.challenger}",
        decision=decision.digest,
        expected_champion=decision.champion,
        at=at,
    )
    sync_mlflow_to_ledger(home, MODEL)
    return row


def counts(
    copies: int,
    errors: Mapping[str, int] | None = None,
    seconds: Sequence[Pair] = (),
    scores: Sequence[Pair] = (),
    host: str = "a",
    dropped: int = 0,
) -> ShadowCounts:
    return ShadowCounts(
        host=host,
        began="2026-11-30T10:00:00+00:00",
        ended="2026-11-30T11:00:00+00:00",
        copies=copies,
        dropped=dropped,
        errors=dict(errors or {}),
        seconds=tuple(seconds),
        scores=tuple(scores),
    )
