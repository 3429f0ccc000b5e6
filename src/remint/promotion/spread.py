"""Seed-to-seed variation of a pipeline: recorded for the gate, and drawn."""

from __future__ import annotations

import getpass
from collections.abc import Sequence

from remint.promotion.paired import seed_margin
from remint.promotion.retraining import Retraining
from remint.records import Record, digest
from remint.runtime.home import Home
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
        return cls(metrics=metrics, dataset=job.dataset.digest, recipe=digest(job.settings.recipe.without_seed()))


class SpreadReport(SeedSpread):
    """Answer of ``remint spread --json``."""

    confidence: float  # of the margins
    margins: dict[str, float]  # by metric: bound on the difference between two seeds
    picture: str


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
