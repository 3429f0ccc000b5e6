"""Settle a decision: write one ledger row, then update everything that follows the ledger.

A process may die between the row and the updates. The decision is kept in pending_decision.json from before the row until
all updates are done, and the next run of the pipeline finishes them.
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
from remint.promotion.page import since, write
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.retraining import Retraining, timed
from remint.records import canonical, digest
from remint.runtime.home import Home
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.row import LedgerRow, is_visible
from remint.stores.mlflow import ModelVersion, VersionTags
from remint.stores.open import open_serving_events

# Shows a decision with its row to people, and requests approval if it awaits one. The last argument gets a line about that.
Announce = Callable[[Home, ModelVersion, Decision, LedgerRow, Callable[[str], None]], None]


def settle(job: Retraining, version: ModelVersion, evidence: Evidence, judgement: Judgement, announce: Announce) -> Outcome:
    """Write the decision to the ledger, the source of truth, then update MLflow, the report and Prefect. Return the outcome."""
    with timed(job, "settle"):
        for _ in range(3):
            try:
                # Written before the row: if this process dies, the next run finishes the updates from this file.
                judgement.decision.write(_pending(job, version.version))
                row = _append(job, evidence, judgement)
                break
            except ChampionChanged:  # the champion changed, or a person vetoed the version
                judgement = judge_version(job, version, evidence)
        else:
            raise ChampionChanged(
                f"{job.pipeline}: the champion changed three times while version {version.version} was judged: run again"
            )
        _update(job, version, judgement, row, announce)
    return outcome(job, evidence, row, judgement.decision.reasons)


def _pending(job: Retraining, version: int) -> Path:
    """Path of the decision on a version until all updates are done; then it is renamed to decision.json."""
    return job.home.report(job.pipeline, version) / PENDING


def _update(job: Retraining, version: ModelVersion, judgement: Judgement, row: LedgerRow, announce: Announce) -> None:
    """Update everything that follows a row. Safe to repeat."""
    sync_mlflow_to_ledger(job.home, job.pipeline)
    decision, folder = judgement.decision, job.home.report(version.name, version.version)
    written = write.write(job, version, judgement, row, folder)
    events = open_serving_events(job.home).about(version.name, version.version)  # of a version that is judged again
    since.refresh(written, job.ledger.about(version.name, version.version), events)
    kept = (written, *folder.glob("against_*.png"), *folder.glob("drift.*"))
    pending = _pending(job, version.version)
    job.tracking.attach(version, {DECISION: pending, **{path.name: path for path in kept}})
    job.tracking.set_tags(version, VersionTags(decision_sha256=decision.digest))
    job.tell("decided", verdict=decision.verdict, version=version.ref)
    announce(job.home, version, decision, row, lambda text: job.tell("notice", text=text))
    pending.rename(folder / DECISION)


def _append(job: Retraining, evidence: Evidence, judgement: Judgement) -> LedgerRow:
    job.lease.confirm()
    decision = judgement.decision
    why = "\n".join([*decision.reasons, *([f"reason given: {job.reason}"] if is_visible(job.reason) else [])])
    return job.ledger.append(
        model=job.pipeline,
        action=decision.verdict,
        version=decision.challenger,
        champion_after=decision.challenger if decision.verdict == "promoted" else decision.champion,
        who="gate",
        why=why,
        evidence=evidence_key(job, evidence),
        decision=decision.digest,
        trial=canonical(decision.trial.to_json()) if decision.trial else "",
        seen=judgement.seen_first,
        expected_champion=decision.champion,
    )


def evidence_key(job: Retraining, evidence: Evidence) -> str:
    """Return the digest of the basis of a decision, without the champion: same weights, report, rules and spread -> same key."""
    rules, spread = job.settings.promotion.model_dump(mode="json"), job.spread
    rests_on = {"key": job.model.key, "report": evidence.report.digest, "rules": rules, "dirty": job.commit.dirty}
    serving = job.settings.serving
    rests_on |= {"serving": serving.model_dump(mode="json")} if serving.shadow is not None else {}
    return digest(rests_on | ({"spread": spread.digest} if spread else {}))


def settled_before(job: Retraining, evidence: Evidence, announce: Announce) -> Outcome | None:
    """Return the earlier outcome for the same weights, report and rules; None if there is none or the champion changed."""
    key, rows = evidence_key(job, evidence), job.ledger.rows(job.pipeline)
    judged = next((row for row in reversed(rows) if row.evidence == key), None)
    if judged is None:
        return None
    since = [row for row in rows if row.version == judged.version and row.sequence > judged.sequence and not row.evidence]
    row = since[-1] if since else judged  # a person's later decision counts
    if not since and judged.version in CollectedVersions(job.home.ledger_url).versions(job.pipeline):
        return None  # remint gc removed the version, and no person decided on it: register and judge it anew
    if row.champion_after != rows[-1].champion_after or (not since and _lacked_evidence(job, row.version)):
        return None
    if _pending(job, judged.version).exists() and not _finish_pending(job, evidence, judged, announce):
        return None
    job.finish_run()  # a run is open if dvc's cache was lost and the training gave the same weights
    job.tell("unchanged", version=f"{job.pipeline}/{row.version}", champion=row.champion_after)
    return outcome(job, evidence, row, tuple(row.why.splitlines()), unchanged=True)


def _finish_pending(job: Retraining, evidence: Evidence, row: LedgerRow, announce: Announce) -> bool:
    """Finish the updates of a row whose process died after it. Return False if the version or its pending decision is lost."""
    try:
        decision = Decision.read(_pending(job, row.version))
        version = job.tracking.version(f"{row.model}/{row.version}")
    except (NotFoundError, ValueError):
        return False
    if decision.verdict != row.action or not row.why.startswith("\n".join(decision.reasons)):
        return False
    with timed(job, "settle"):
        champion_version = decision.champion
        found = ChampionEvidence() if champion_version is None else champion.evidence(job, evidence, champion_version)
        _update(job, version, Judgement(decision, found), row, announce)
    return True


def _lacked_evidence(job: Retraining, version: int) -> bool:
    """Return whether the gate refused a version for lack of evidence, which may exist by now: restored bytes, for example."""
    path = job.home.report(job.pipeline, version) / DECISION
    return path.exists() and any(rule.rule == "evidence" and not rule.passed for rule in Decision.read(path).rules)
