"""Settle a decision: one row of the ledger, and then everything that follows it.

A process may die between the row and the rest. The decision is kept in pending_decision.json from before the row until
everything has followed, and the next run of the pipeline finishes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from remint.errors import ChampionChanged, NotFoundError
from remint.evaluation.evidence import Evidence
from remint.promotion import champion
from remint.promotion.champion import ChampionEvidence
from remint.promotion.decision import Decision
from remint.promotion.judge import Judgement, judge_version
from remint.promotion.kept_decisions import DECISION, PENDING
from remint.promotion.outcome import Outcome, outcome
from remint.promotion.page import write
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.retraining import Retraining, timed
from remint.records import LedgerRow, digest
from remint.stores.ledger.collected import Collected
from remint.stores.mlflow import ModelVersion, VersionTags

# Shows a decision with its row to people, and asks them where it awaits approval.
Announce = Callable[[Retraining, ModelVersion, Decision, LedgerRow], None]


def settle(job: Retraining, version: ModelVersion, evidence: Evidence, judgement: Judgement, announce: Announce) -> Outcome:
    """Writes the decision to the ledger, which is the truth, and lets MLflow, the report and people's screens follow it."""
    with timed(job, "settle"):
        for _ in range(3):
            try:
                judgement.decision.write(
                    _pending(job, version.version)
                )  # first: where we die, the next run follows the row by it
                row = _append(job, evidence, judgement.decision)
                break
            except ChampionChanged:  # somebody promoted, or spoke against it, while we judged: judge it again
                judgement = judge_version(job, version, evidence)
        else:
            raise ChampionChanged(
                f"{job.pipeline}: the champion changed three times while version {version.version} was judged: run again"
            )
        _follow(job, version, judgement, row, announce)
    return outcome(job, evidence, row, judgement.decision.reasons)


def _pending(job: Retraining, version: int) -> Path:
    """The decision on a version until everything has followed its row; then it is decision.json."""
    return job.home.report(job.pipeline, version) / PENDING


def _follow(job: Retraining, version: ModelVersion, judgement: Judgement, row: LedgerRow, announce: Announce) -> None:
    """What comes of a row. All of it can be done again."""
    sync_mlflow_to_ledger(job.home, job.pipeline)
    decision, folder = judgement.decision, job.home.report(version.name, version.version)
    written = write.write(job, version, judgement, row, folder)
    kept = (written, *folder.glob("against_*.png"), *folder.glob("drift.*"))
    pending = _pending(job, version.version)
    job.tracking.attach(version, {DECISION: pending, **{path.name: path for path in kept}})
    job.tracking.set_tags(version, VersionTags(decision_sha256=decision.digest))
    job.tell("decided", verdict=decision.verdict, version=version.ref)
    announce(job, version, decision, row)
    pending.rename(folder / DECISION)


def _append(job: Retraining, evidence: Evidence, decision: Decision) -> LedgerRow:
    job.lease.confirm()
    why = "\n".join([*decision.reasons, *([f"reason given: {job.reason}"] if job.reason else [])])
    return job.ledger.append(
        model=job.pipeline,
        action=decision.verdict,
        version=decision.challenger,
        champion_after=decision.challenger if decision.verdict == "promoted" else decision.champion,
        who="gate",
        why=why,
        evidence=evidence_key(job, evidence),
        decision=decision.digest,
        expected_champion=decision.champion,
    )


def evidence_key(job: Retraining, evidence: Evidence) -> str:
    """What a decision rests on, apart from who is champion: same weights, report, rules and spread -> same key."""
    rules, spread = job.settings.promotion.model_dump(mode="json"), job.spread
    rests_on = {"key": job.model.key, "report": evidence.report.digest, "rules": rules, "dirty": job.commit.dirty}
    return digest(rests_on | ({"spread": spread.digest} if spread else {}))


def settled_before(job: Retraining, evidence: Evidence, announce: Announce) -> Outcome | None:
    """The answer given before for the same weights, report and rules, while its champion still stands."""
    key, rows = evidence_key(job, evidence), job.ledger.rows(job.pipeline)
    judged = next((row for row in reversed(rows) if row.evidence == key), None)
    if judged is None:
        return None
    since = [row for row in rows if row.version == judged.version and row.sequence > judged.sequence and not row.evidence]
    row = since[-1] if since else judged  # a person may have spoken of it since
    if not since and judged.version in Collected(job.home.ledger_url).versions(job.pipeline):
        return None  # remint gc removed that version: it is registered and judged anew, unless a person has spoken of it
    if row.champion_after != rows[-1].champion_after or (not since and _lacked_evidence(job, row.version)):
        return None
    if _pending(job, judged.version).exists() and not _followed(job, evidence, judged, announce):
        return None
    job.finish_run()  # it was trained again where dvc's memory of it is gone, and came out the same
    job.tell("unchanged", version=f"{job.pipeline}/{row.version}", champion=row.champion_after)
    return outcome(job, evidence, row, tuple(row.why.splitlines()), unchanged=True)


def _followed(job: Retraining, evidence: Evidence, row: LedgerRow, announce: Announce) -> bool:
    """Lets everything follow a row whose process died right after it. False where the version is gone, or nothing is known of
    that decision."""
    try:
        decision = Decision.read(_pending(job, row.version))
        version = job.tracking.version(f"{row.model}/{row.version}")
    except (NotFoundError, ValueError):
        return False
    if decision.verdict != row.action or not row.why.startswith("\n".join(decision.reasons)):
        return False
    with timed(job, "settle"):
        holder = decision.champion
        found = ChampionEvidence() if holder is None else champion.evidence(job, evidence, holder)
        _follow(job, version, Judgement(decision, found), row, announce)
    return True


def _lacked_evidence(job: Retraining, version: int) -> bool:
    """Whether the gate refused a version for want of evidence, which may be there by now: bytes that were put back, say."""
    path = job.home.report(job.pipeline, version) / DECISION
    return path.exists() and any(rule.rule == "evidence" and not rule.passed for rule in Decision.read(path).rules)
