"""Outcome of one retraining: the JSON of ``remint run --json`` for one pipeline."""

from __future__ import annotations

from typing import Any

from remint.evaluation.evidence import Evidence
from remint.promotion.decision import Decision
from remint.promotion.kept_decisions import DECISION
from remint.promotion.page import write
from remint.promotion.retraining import Retraining
from remint.records import MetricValue, Record
from remint.stores.ledger.row import LedgerRow


class Rule(Record):
    """One rule of the gate with its result."""

    rule: str
    metric: str | None
    passed: bool
    reason: str


class Verdict(Record):
    """Newest decision on a version: of the gate, or of a person after it."""

    verdict: str
    reasons: tuple[str, ...]
    rules: tuple[Rule, ...]  # of the gate's last decision


class Outcome(Record):
    """Outcome of one retraining."""

    pipeline: str
    dataset: str
    dataset_version: str  # digest of the DatasetVersion
    weights_sha256: str
    model: str
    version: int
    champion: int | None
    trained: bool  # False: dvc restored it
    unchanged: bool  # True: the ledger held this decision already
    metrics: dict[str, MetricValue]
    context: dict[str, MetricValue]  # EvaluationReport.context
    decision: Verdict
    report: str  # path of the page
    seconds: dict[str, float]  # of each step

    @property
    def ref(self) -> str:
        return f"{self.model}/{self.version}"

    @property
    def champion_ref(self) -> str:
        return f"{self.model}/{self.champion}" if self.champion else "nothing"


def outcome(job: Retraining, evidence: Evidence, row: LedgerRow, reasons: tuple[str, ...], *, unchanged: bool = False) -> Outcome:
    """Return the outcome for a ledger row and its reasons."""
    report, path = evidence.report, job.home.report(job.pipeline, row.version)
    rules = Decision.read(path / DECISION).rules if (path / DECISION).exists() else ()
    named: list[dict[str, Any]] = [rule.model_dump(include=set(Rule.model_fields)) for rule in rules]
    return Outcome(
        pipeline=job.pipeline,
        dataset=job.dataset.name,
        dataset_version=job.dataset.digest,
        weights_sha256=job.model.weights_sha256,
        model=job.pipeline,
        version=row.version,
        champion=row.champion_after,
        trained=job.trained,
        unchanged=unchanged,
        metrics={name: report.metrics[name] for name in job.settings.metrics()},
        context=report.context,
        decision=Verdict(verdict=row.action, reasons=reasons, rules=tuple(Rule.model_validate(rule) for rule in named)),
        report=str(path / write.NAME),
        seconds=job.seconds,
    )
