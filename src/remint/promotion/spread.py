"""Seed-to-seed variation of a pipeline: recorded for the gate, and drawn."""

from __future__ import annotations

import getpass
from collections.abc import Sequence

from remint.promotion.paired import seed_margin
from remint.promotion.retraining import Retraining
from remint.records import Record, digest
from remint.runtime.home import Home
from remint.settings.judging import MIN_SEEDS
from remint.settings.params import PipelineSettings
from remint.settings.recipe import without_seed
from remint.stores.ledger.spreads import SeedSpread
from remint.stores.open import open_spreads


class SeedResult(Record):
    """Result of one seed."""

    metrics: dict[str, float]
    dataset: str  # digest of the DatasetVersion
    recipe: str  # digest of the recipe without its seed

    @classmethod
    def of(cls, job: Retraining) -> SeedResult:
        metrics = {name: value.value for name, value in job.report.metrics.items()}
        return cls(metrics=metrics, dataset=job.dataset.digest, recipe=digest(without_seed(job.settings.recipe.resolved())))


class SpreadReport(SeedSpread):
    """Answer of ``remint spread --json``."""

    confidence: float  # of the margins
    margins: dict[str, float]  # by metric: bound on the difference between two seeds
    picture: str


def missing_seeds(home: Home, pipeline: str, settings: PipelineSettings) -> list[int] | None:
    """Return the seeds by which a scheduled run measures the variation that ``margin: auto`` needs; None if nothing is missing.

    They begin with the pipeline's own seed, whose training dvc has already. [] if ``improve.seeds`` is 0.
    """
    improve = settings.promotion.improve
    if improve is None or improve.margin != "auto":
        return None
    known = open_spreads(home).newest(pipeline)
    if known is not None and all(len(known.values.get(metric, ())) >= MIN_SEEDS for metric in improve.metrics):
        return None
    first = settings.training.seed
    return list(range(first, first + improve.seeds))


def announcement(pipeline: str, seeds: int) -> str:
    """Return a sentence for the time until the variation is known. ``seeds``: trainings of the next scheduled run for it."""
    night = f"the next scheduled run measures it by {seeds} trainings, or " if seeds else ""
    wait = "margin: auto promotes no other version before the variation over seeds is known"
    return f"{wait}: {night}remint spread {pipeline} measures it now"


def record_spread(
    home: Home, pipeline: str, seeds: Sequence[int], results: Sequence[SeedResult], confidence: float
) -> SpreadReport:
    """Record the spread of one recipe's seeds, and draw it."""
    spread = SeedSpread(
        pipeline=pipeline,
        recipe=results[0].recipe,
        dataset=results[0].dataset,
        seeds=tuple(seeds),
        values={name: tuple(each.metrics[name] for each in results) for name in results[0].metrics},
    )
    open_spreads(home).record(spread, getpass.getuser())
    margins = {metric: seed_margin(values, confidence) for metric, values in spread.values.items()}
    picture = home.reports / pipeline / "seed-spread.png"
    picture.parent.mkdir(parents=True, exist_ok=True)

    from remint.evaluation import charts

    charts.seed_spread(picture, spread, margins)
    return SpreadReport(**spread.to_json(), confidence=confidence, margins=margins, picture=str(picture))
