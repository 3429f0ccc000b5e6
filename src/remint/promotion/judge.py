"""Judge a version: the gate compares the evidence of the challenger with that of the champion."""

from __future__ import annotations

from dataclasses import dataclass

from remint.evaluation.evidence import Evidence
from remint.promotion import champion, decide, gate
from remint.promotion.champion import ChampionEvidence
from remint.promotion.decision import Decision
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.retraining import Retraining, timed
from remint.records import digest
from remint.stores.mlflow import ModelVersion


@dataclass(frozen=True)
class Judgement:
    """A decision, and the champion's evidence that it is based on."""

    decision: Decision
    champion: ChampionEvidence


def judge_version(job: Retraining, version: ModelVersion, evidence: Evidence) -> Judgement:
    """Compare the version with the champion, which is measured again on today's data with today's settings."""
    with timed(job, "judge"):
        for mended in sync_mlflow_to_ledger(job.home, job.pipeline):
            job.tell("notice", text=mended)
        champion_version = job.ledger.champion(job.pipeline)
        found = ChampionEvidence() if champion_version is None else champion.evidence(job, evidence, champion_version)
        champion.save_drift(job, found, job.home.report(version.name, version.version))
        trained = job.model
        decision = gate.decide(
            job.pipeline,
            evidence,
            version.version,
            found.evidence,
            champion_version,
            job.settings.promotion,
            dirty=job.commit.reason_dirty,
            person=decide.vetoed_by(job.home, version),
            incomparable=found.unavailable_reason,
            champion_leakage=found.leakage if found.drift else None,
            obstacle=found.obstacle,
            part=found.part,
            serving=job.settings.serving,
            training_failure=f"training {trained.ended}: {trained.reason}" if trained.went_wrong else None,
            spread=job.spread,
            recipe=digest(job.settings.recipe.without_seed()),
        )
    return Judgement(decision, found)
