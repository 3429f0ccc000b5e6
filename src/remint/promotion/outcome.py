"""What ``remint run --json`` prints of one pipeline."""

from __future__ import annotations

from typing import Any

from remint.promotion.page import write
from remint.promotion.retraining import Retraining
from remint.records import Decision


def outcome(
    job: Retraining, version: int, verdict: str, reasons: list[str], holder: int | None, unchanged: bool = False
) -> dict[str, Any]:
    """What ``remint run --json`` prints for this pipeline."""
    report = job.evidence.report
    return {
        "pipeline": job.pipeline,
        "dataset": job.dataset.name,
        "dataset_version": job.dataset.digest,
        "weights_sha256": job.model.weights_sha256,
        "model": job.pipeline,
        "version": version,
        "champion": holder,
        "trained": job.trained,
        "unchanged": unchanged,
        "metrics": {name: report.metrics[name].to_json() for name in job.settings.metrics()},
        "context": {name: value.to_json() for name, value in report.context.items()},
        "decision": {"verdict": verdict, "reasons": reasons, "rules": _rules(job, version)},
        "report": str(job.home.report(job.pipeline, version) / write.NAME),
        "seconds": job.seconds,
    }


def _rules(job: Retraining, version: int) -> list[dict[str, Any]]:
    """Each rule of the version's last decision by the gate, held or not, in its own words."""
    path = job.home.report(job.pipeline, version) / "decision.json"
    if not path.exists():
        return []
    return [
        {"rule": rule.rule, "metric": rule.metric, "passed": rule.passed, "reason": rule.reason}
        for rule in Decision.read(path).rules
    ]
