"""Judge a version: the gate compares the evidence of the challenger with that of the champion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from remint.data.arrays import held_out_digests
from remint.errors import NotFoundError
from remint.evaluation.evidence import Evidence
from remint.promotion import champion, decide, gate, trials
from remint.promotion.champion import ChampionEvidence
from remint.promotion.decision import Decision
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.retraining import Retraining, timed
from remint.promotion.trials import Ages, Past
from remint.records import digest
from remint.settings.recipe import without_seed
from remint.stores.ledger.seen import ages
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_seen_examples

ALL_SEEN: Ages = ((0, 1.0),)


@dataclass(frozen=True)
class Judgement:
    """A decision, and the champion's evidence that it is based on."""

    decision: Decision
    champion: ChampionEvidence
    seen_first: str = ""  # held-out examples that no decision had seen (stores/ledger/seen.py)


def judge_version(job: Retraining, version: ModelVersion, evidence: Evidence) -> Judgement:
    """Compare the version with the champion, which is measured again on today's data with today's settings."""
    with timed(job, "judge"):
        for mended in sync_mlflow_to_ledger(job.home, job.pipeline):
            job.tell("notice", text=mended)
        champion_version = job.ledger.champion(job.pipeline)
        found = ChampionEvidence() if champion_version is None else champion.evidence(job, evidence, champion_version)
        champion.save_drift(job, found, job.home.report(version.name, version.version))
        trained, past = job.model, _past(job, champion_version)
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
            recipe=digest(without_seed(job.settings.recipe.resolved())),
            past=past,
        )
    return Judgement(decision, found, past.seen_first)


def _past(job: Retraining, champion_version: int | None) -> Past:
    """Return the circumstances of tonight's comparison. Where what was seen before is damaged, no example counts as new.

    Raises LedgerError if a row or the newest try was changed.
    """
    rows, seen = job.ledger.intact_rows(job.pipeline), open_seen_examples(job.home).of(job.pipeline)
    earlier = trials.checked(job.pipeline, rows)
    past = Past(trials=tuple(earlier), ages=ALL_SEEN)
    if trials.seen_is_intact(earlier, rows, seen):
        shares, seen_first = ages(held_out_digests(job.out("prepared", job.settings.dataset)), seen)
        places = {row.sequence: place for place, row in enumerate((row for row in rows if row.trial), start=1)}
        past = replace(past, ages=tuple((places.get(row, 0), share) for row, share in shares.items()), seen_first=seen_first)
    if champion_version is None:
        return past
    try:
        champion = job.tracking.version(f"{job.pipeline}/{champion_version}")
    except NotFoundError:  # the champion's evidence says so
        return past
    tags = champion.tags
    return replace(
        past,
        champion_recipe=digest(without_seed(tags.settings)),
        champion_dataset=champion.dataset,
        champion_seed=int(tags.seed) if tags.seed is not None else None,
        champion_values={name: value.value for name, value in tags.measurements.items()},
        champion_key=champion.key,
        ages=ALL_SEEN
        if champion.dataset == job.dataset.digest and not past.ages
        else past.ages,  # an older remint's decision saw them
    )
